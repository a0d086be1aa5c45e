"""Posts one body to one receiver: connections judged, redirects not followed, little of the answer kept."""

import asyncio
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpcore

from command_api.network.addresses import networks
from command_api.network.guard import Guard, GuardedBackend
from command_api.settings import WebhookSettings
from command_api.webhooks.schedule import Answer, NoAnswer
from schemas.errors import KinoraError

KEPT_BYTES = 1024
"""Of an answer's body, for people who look why it was refused."""
_IDLE_SECONDS = 30.0
_FAILED = (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError)


class TargetRefused(KinoraError):
    """The receiver's address may not be connected to; `code` tells why."""

    code = "address_refused"

    def __init__(self, message: str, *, code: str, retryable: bool = False) -> None:
        super().__init__(message, code=code)
        self.retryable = retryable


class Sender:
    """An HTTP client for receivers outside. Use as an async context manager."""

    def __init__(self, settings: WebhookSettings) -> None:
        self._seconds = settings.timeout_seconds
        allowed = networks(settings.allowed_networks)
        guard = Guard(allowed, "webhooks.allowed_networks", TargetRefused)
        near = Guard(allowed, "webhooks.allowed_networks", TargetRefused, public=False)
        # In the clear only where the operator vouches for the network.
        trusted = ssl.create_default_context()
        self._pools = {
            "https": _pool(guard, trusted, settings),
            "http": _pool(near, trusted, settings),
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools.values():
            await pool.aclose()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer | NoAnswer:
        """What became of one attempt; never raises for what the receiver or the network does."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._post(url, body, headers)
        except (TimeoutError, httpcore.TimeoutException):
            return NoAnswer("timeout", f"no answer within {self._seconds:g} s")
        except TargetRefused as refused:
            if refused.code == "host_unknown":
                return NoAnswer("host_unknown", refused.message)
            return NoAnswer("address_refused", refused.message)
        except _FAILED as error:
            return NoAnswer("unreachable", (str(error) or type(error).__name__)[:300])

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        parts = urlsplit(url)
        pool = self._pools[parts.scheme]
        sent = {"host": parts.netloc, "content-length": str(len(body)), **headers}
        async with pool.stream("POST", url, headers=list(sent.items()), content=body) as answer:
            return Answer(answer.status, await _beginning(answer), _header(answer, b"retry-after"))


def _pool(guard: Guard, trusted: ssl.SSLContext, settings: WebhookSettings) -> httpcore.AsyncConnectionPool:
    return httpcore.AsyncConnectionPool(
        ssl_context=trusted,
        network_backend=GuardedBackend(guard),
        max_connections=settings.at_once,
        max_keepalive_connections=settings.at_once,
        keepalive_expiry=_IDLE_SECONDS,
    )


async def _beginning(answer: httpcore.Response) -> str:
    kept = bytearray()
    async for chunk in answer.aiter_stream():
        kept += chunk
        if len(kept) > KEPT_BYTES:
            break
    # PostgreSQL's text takes no NUL.
    return bytes(kept[:KEPT_BYTES]).decode(errors="replace").replace("\0", "\ufffd")


def _header(answer: httpcore.Response, name: bytes) -> str | None:
    for key, value in answer.headers:
        if key.lower() == name:
            return value.decode("latin-1")
    return None
