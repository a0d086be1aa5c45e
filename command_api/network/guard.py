"""Connects only to addresses that were just judged: a name is resolved once, and that is connected to.

So neither a name that points inside, nor one that points elsewhere the second time, nor a redirect gets past.
"""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Protocol

import httpcore
from aiohttp.abc import AbstractResolver, ResolveResult

from command_api.network.addresses import Address, Network, is_among, is_permitted

_RESOLVE_SECONDS = 10.0


class Refusal(Protocol):
    """The error in which whoever connects tells that it may not."""

    def __call__(self, message: str, *, code: str, retryable: bool = False) -> Exception: ...


@dataclass(frozen=True, slots=True)
class Guard:
    """Judges the addresses behind names; `setting` is where the operator allows further networks."""

    allowed: Sequence[Network]
    setting: str
    refusal: Refusal
    public: bool = True
    """Whether the public Internet may be reached, or only what is allowed."""

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses behind a name, all of which may be connected to.

        Raises:
            Exception: `refusal` with the code ``host_unknown``, or ``address_refused`` when any may not.
        """
        try:
            async with asyncio.timeout(_RESOLVE_SECONDS):
                found = await asyncio.get_running_loop().getaddrinfo(
                    host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
                )
        except (OSError, TimeoutError, UnicodeError):
            raise self.refusal(
                f"the host {host} cannot be resolved; check its name", code="host_unknown", retryable=True
            ) from None
        addresses = list(dict.fromkeys(str(place[4][0]) for place in found))
        if not addresses or not all(self.permits(ip_address(each)) for each in addresses):
            # The address itself is not told: it would map the inside for whoever asks.
            raise self.refusal(f"the host {host} {self._why()} ({self.setting})", code="address_refused")
        return addresses

    def permits(self, address: Address) -> bool:
        return is_permitted(address, self.allowed) if self.public else is_among(address, self.allowed)

    def _why(self) -> str:
        if self.public:
            return (
                "is not on the public Internet; private, loopback and link-local addresses are not reached,"
                " unless the operator allows their network"
            )
        return "is in no network that the operator allows; use https for the public Internet"


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """The network below an HTTP client. TLS still names and verifies the host of the URL."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._guard.addresses(host, port)
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise self._guard.refusal("socket files are not connected to", code="address_refused")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class GuardedResolver(AbstractResolver):
    """The same for S3's client, which asks it for every name. It asks for no address that is one already."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

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
            for address in await self._guard.addresses(host, port)
        ]

    async def close(self) -> None:
        """Nothing is open."""
