"""Connects only to addresses that were just judged: a name is resolved once, and that is connected to.

So neither a name that points inside, nor one that points elsewhere the second time, nor a redirect gets past.
"""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

import httpcore
from aiohttp.abc import AbstractResolver, ResolveResult

from command_api.imports.addresses import Network, is_permitted
from command_api.imports.errors import SourceFailed

_RESOLVE_SECONDS = 10.0


async def permitted_addresses(host: str, port: int, allowed: Sequence[Network]) -> list[str]:
    """The addresses behind a name, all of which may be connected to.

    Raises:
        SourceFailed: ``host_unknown``, or ``address_refused`` when any of them may not.
    """
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
    except (OSError, TimeoutError, UnicodeError):
        raise SourceFailed(
            f"the host {host} cannot be resolved; check its name", code="host_unknown", retryable=True
        ) from None
    addresses = list(dict.fromkeys(str(place[4][0]) for place in found))
    if not addresses or not all(is_permitted(ip_address(address), allowed) for address in addresses):
        # The address itself is not told: it would map the inside for whoever asks.
        raise SourceFailed(
            f"the host {host} is not on the public Internet; imports reach no private, loopback or link-local"
            " addresses, unless the operator allows their network (imports.allowed_networks)",
            code="address_refused",
        )
    return addresses


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """The network below an HTTP client. TLS still names and verifies the host of the URL."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = tuple(allowed)
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await permitted_addresses(host, port, self._allowed)
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise SourceFailed("imports connect to no socket files", code="address_refused")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class GuardedResolver(AbstractResolver):
    """The same for S3's client, which asks it for every name. It asks for no address that is one already."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = tuple(allowed)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await permitted_addresses(host, port, self._allowed)
        ]

    async def close(self) -> None:
        """Nothing is open."""
