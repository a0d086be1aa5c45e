"""Which names the service answers to, which web pages may use it, and where a request comes from."""

from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from command_api.problems import problem_response
from command_api.settings import ApiSettings

_NETWORK_BITS = 64
"""Whoever has one IPv6 address usually has all of its network."""


def origins(settings: ApiSettings) -> frozenset[str]:
    """Origins whose pages may use the API and the feed: its own, and those of the settings."""
    own = urlsplit(settings.public_url)
    return frozenset({f"{own.scheme}://{own.netloc}", *settings.allowed_origins})


def is_welcome(origin: str | None, welcome: frozenset[str]) -> bool:
    """Whether a request with this Origin header is taken; programs other than browsers send none."""
    return origin is None or origin in welcome


def address(connection: HTTPConnection) -> str:
    """Whom a quota per address counts: an IPv4 address, or the network of an IPv6 one."""
    host = connection.client.host if connection.client else ""
    try:
        found = ip_address(host)
    except ValueError:
        return host or "unknown"
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ip_network((found, _NETWORK_BITS), strict=False))
    return host


def host_names(settings: ApiSettings) -> frozenset[str]:
    """Names that the service is called by."""
    own = urlsplit(settings.public_url).hostname or ""
    return frozenset(name.lower() for name in (own, "localhost", *settings.allowed_hosts))


class HostCheck:
    """Refuses requests for another name: a page whose name was made to lead here would be of our origin.

    Plain addresses pass, because no page can be loaded by a name that way; probes use them.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_ours(Headers(scope=scope).getlist("host")):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "another host"})
        else:
            refusal = problem_response(
                Request(scope),
                status=421,
                code="misdirected_request",
                detail="the Host header names another service; use the address in public_url,"
                " or add the name to allowed_hosts in the settings",
            )
            await refusal(scope, receive, send)

    def _is_ours(self, given: Sequence[str]) -> bool:
        if len(given) != 1:
            return False
        name = given[0].strip().lower()
        host = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if host in self._names:
            return True
        try:
            ip_address(host)
        except ValueError:
            return False
        return True
