"""Where a webhook's requests may go, as far as the address tells; delivery looks at what it resolves to."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from command_api.domain.errors import Invalid


def check_url(url: str) -> None:
    """Refuse an address that could not be used, or would show a secret to all who may read events.

    Raises:
        Invalid: naming the field, and what to write instead.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _refused(f"url is {url[:60]!a}, which is no address; write https://host/path") from None
    if parts.scheme not in ("https", "http") or not host or port == 0:
        raise _refused(f"url is {url[:60]!a}; write https://host/path")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise _refused(
            "url may hold no user, password, ?query or #fragment: everybody who reads events sees it; "
            "leave them out, and let the receiver check the signature instead",
            "url_holds_secret",
        )
    if parts.scheme == "http" and not _is_near(host):
        raise _refused(
            f"url begins with http://, but {host[:60]!a} is not a private address: events would travel"
            " readable to everybody on the way; use https://",
            "url_in_clear",
        )


def _is_near(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_private


def _refused(message: str, code: str = "invalid_request") -> Invalid:
    return Invalid.field("/url", code, message)
