"""What an installation lets webhooks reach, as far as a URL tells before anybody connects to it."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from command_api.domain.errors import Invalid
from command_api.network.addresses import is_permitted, networks
from command_api.settings import WebhookSettings

_FIRST_OPEN_PORT = 1024
_WEB_PORTS = (80, 443)
"""Others below belong to other protocols, some of which take commands out of a request."""


def check_target(url: str, settings: WebhookSettings) -> None:
    """Refuse what would never be delivered to. What a name resolves to is judged at every connection.

    `url` is a well-formed http or https address.

    Raises:
        Invalid: codes ``url_not_https``, ``port_refused`` and ``address_refused``.
    """
    parts = urlsplit(url)
    if parts.scheme == "http" and not settings.allowed_networks:
        raise _refused(
            "url_not_https",
            "url begins with http://, so anybody on the way could read and forge what arrives; use https://,"
            " or have the operator allow the receiver's own network (webhooks.allowed_networks)",
        )
    port = parts.port
    if port is not None and port not in _WEB_PORTS and port < _FIRST_OPEN_PORT:
        raise _refused(
            "port_refused", f"url names port {port}; let the receiver listen on 443, or on 1024 or above"
        )
    try:
        address = ip_address(parts.hostname or "")
    except ValueError:
        return
    if not is_permitted(address, networks(settings.allowed_networks)):
        raise _refused(
            "address_refused",
            f"url names {address}, which is not on the public Internet; name a receiver that is, or have the"
            " operator allow its network (webhooks.allowed_networks)",
        )


def _refused(code: str, message: str) -> Invalid:
    return Invalid.field("/url", code, message)
