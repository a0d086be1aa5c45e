"""One file over HTTP, in or out, by a presigned URL; verified, and repeated while that makes sense."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import structlog

from trainer_agent.errors import ContentMismatch, TransferFailed
from trainer_agent.hashing import Digest
from trainer_agent.waiting import Backoff

log = structlog.get_logger()

T = TypeVar("T")

_CHUNK = 1 << 20
_BUSY = frozenset({408, 425, 429})
_EXPIRED = frozenset({400, 401, 403})
"""A URL that has expired looks like one never allowed or, to rclone, malformed; a renewed one tells."""


@asynccontextmanager
async def http_client() -> AsyncIterator[httpx.AsyncClient]:
    """One client per agent. A proxy from the environment is used, except for this machine itself."""
    direct: dict[str, httpx.AsyncBaseTransport | None] = {
        f"all://{host}": httpx.AsyncHTTPTransport() for host in ("127.0.0.1", "localhost", "[::1]")
    }
    timeout = httpx.Timeout(60.0, connect=10.0)
    async with httpx.AsyncClient(timeout=timeout, mounts=direct, follow_redirects=False) as client:
        yield client


async def download(
    client: httpx.AsyncClient, url: str, target: Path, *, size_bytes: int, sha256: str
) -> None:
    """Fetch `url` into `target`, which is whole and verified when this returns.

    Raises:
        TransferFailed: it did not arrive; `ContentMismatch` when something else did.
    """
    hashed, size = hashlib.sha256(), 0
    try:
        async with client.stream("GET", url) as response:
            _check(response, f"download of {target.name}")
            with target.open("wb") as file:
                async for chunk in response.aiter_raw(_CHUNK):
                    size += len(chunk)
                    if size > size_bytes:
                        break  # already wrong, however much more would come
                    hashed.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
    except httpx.TransportError as error:
        raise TransferFailed(
            f"download of {target.name} broke off: {error or type(error).__name__}"
        ) from error
    if size != size_bytes or hashed.hexdigest() != sha256:
        raise ContentMismatch(
            f"expected {size_bytes} bytes with sha256 {sha256} and received {size} bytes"
            f" with {hashed.hexdigest()}; the stored object is damaged, upload it again"
        )


async def upload(client: httpx.AsyncClient, url: str, source: Path, content: Digest) -> None:
    """Put `source`, whose content is `content`, to `url`.

    Raises:
        TransferFailed: the store did not take it; `ContentMismatch` when the file has changed since.
    """
    hashed = hashlib.sha256()

    async def body() -> AsyncIterator[bytes]:
        with source.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                hashed.update(chunk)
                yield chunk

    headers = {"Content-Length": str(content.size_bytes), "Content-MD5": content.md5_base64}
    try:
        response = await client.put(url, content=body(), headers=headers)
    except (httpx.TransportError, httpx.StreamError) as error:
        raise TransferFailed(f"upload of {source.name} broke off: {error or type(error).__name__}") from error
    _check(response, f"upload of {source.name}")
    if hashed.hexdigest() != content.sha256:
        raise ContentMismatch(
            f"{source.name} changed while it was uploaded; nothing may write to it any more"
        )


def _check(response: httpx.Response, what: str) -> None:
    status = response.status_code
    if status < 300:
        return
    if status >= 500 or status in _BUSY:
        raise TransferFailed(f"{what}: the store answered {status}")
    if status in _EXPIRED:
        raise TransferFailed(f"{what}: the store answered {status}, also to renewed URLs", tries=4)
    raise TransferFailed(f"{what}: the store answered {status}", retryable=False, tries=1)


async def persist(work: Callable[[], Awaitable[T]], *, patience_seconds: float) -> T:
    """Repeat `work` after failures that may pass, each kind as often as it allows.

    Raises:
        TransferFailed: the last one, when it may not be repeated again.
    """
    backoff = Backoff()
    give_up = asyncio.get_running_loop().time() + patience_seconds
    failures: dict[int | None, int] = {}
    while True:
        try:
            return await work()
        except TransferFailed as error:
            failures[error.tries] = failures.get(error.tries, 0) + 1
            worn_out = error.tries is not None and failures[error.tries] >= error.tries
            if worn_out or asyncio.get_running_loop().time() > give_up:
                raise
            log.info("transfer_repeated", error=error.message)
            await backoff.wait()
