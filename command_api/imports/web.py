"""Downloads over HTTP: judged at every connection and redirect, capped, resumed when they break off."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpcore
import httpx

from command_api.imports.errors import SourceFailed, import_guard
from command_api.imports.work import BLOCK_BYTES, Work
from command_api.network.guard import GuardedBackend
from command_api.settings import ImportSettings

MOST_REDIRECTS = 5
TRIES = 4
_TIMEOUTS = {"connect": 10.0, "read": 30.0, "write": 10.0, "pool": 10.0}
_RETRY_SECONDS = 1.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_JSON_BYTES = 64 * 2**20
_AWAY = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, ssl.SSLError)


@dataclass(frozen=True, slots=True)
class Credential:
    """What is sent to one origin, and to no other that it redirects to."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: str = field(default="", repr=False)


class Web:
    """An HTTP client whose every connection is judged. Use as an async context manager."""

    def __init__(self, settings: ImportSettings) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            network_backend=GuardedBackend(import_guard(settings)),
            max_connections=8,
        )

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def download(self, url: str, target: Path, work: Work, credential: Credential) -> None:
        """Write what `url` answers to `target`; goes on where it broke off when the server can.

        Raises:
            SourceFailed: what went wrong, in the user's terms.
        """
        validator = ""
        begun = work.bytes_done
        for attempt in range(1, TRIES + 1):
            have = _size(target) if validator else 0
            work.bytes_done = begun + have
            try:
                wanted = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
                async with self._answer(url, credential, wanted) as answer:
                    headers = _headers(answer)
                    if not (have and answer.status == 206 and _begins_at(headers, have)):
                        have, work.bytes_done = 0, begun
                    validator = _validator(headers)
                    length = headers.get("content-length", "")
                    expected = have + int(length) if length.isdecimal() else None
                    if expected is not None:
                        work.expect(expected - have)
                        if begun == 0:
                            work.bytes_total = expected
                    await _write(answer, target, have, work)
                    if expected is not None and _size(target) < expected:
                        raise _broke_off(url)
                    return
            except SourceFailed as error:
                if not error.retryable or attempt == TRIES or work.ended.is_set():
                    raise
            await asyncio.sleep(_RETRY_SECONDS * 2 ** (attempt - 1))

    async def json(self, url: str, credential: Credential) -> Any:
        """A small JSON document.

        Raises:
            SourceFailed: also when it is none.
        """
        content = bytearray()
        async with self._answer(url, credential, {}) as answer:
            async for chunk in _received(url, answer):
                content += chunk
                if len(content) > _MOST_JSON_BYTES:
                    raise SourceFailed(f"{_shown(url)} answers far too much", code="source_unusable")
        try:
            return json.loads(content)
        except ValueError:
            raise SourceFailed(f"{_shown(url)} does not answer JSON", code="source_unusable") from None

    @asynccontextmanager
    async def _answer(
        self, url: str, credential: Credential, wanted: Mapping[str, str]
    ) -> AsyncIterator[httpcore.Response]:
        """A final answer that is a success."""
        origin = _origin(_parsed(url))
        current = _parsed(url)
        if credential.query:
            joined = f"{current.query.decode()}&{credential.query}".lstrip("&")
            current = current.copy_with(query=joined.encode())
        async with AsyncExitStack() as stack:
            for _ in range(MOST_REDIRECTS + 1):
                own = credential.headers if _origin(current) == origin else {}
                answer = await self._request(stack, current, {**_HEADERS, **wanted, **own})
                if answer.status not in _REDIRECTS:
                    _check(url, answer.status)
                    yield answer
                    return
                current = _redirected(url, current, _headers(answer).get("location", ""))
                await stack.aclose()
        raise SourceFailed(
            f"{_shown(url)} redirects more than {MOST_REDIRECTS} times", code="source_redirects"
        )

    async def _request(
        self, stack: AsyncExitStack, url: httpx.URL, headers: Mapping[str, str]
    ) -> httpcore.Response:
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        sent: list[tuple[bytes | str, bytes | str]] = [("Host", url.netloc.decode()), *headers.items()]
        try:
            return await stack.enter_async_context(
                self._pool.stream("GET", target, headers=sent, extensions={"timeout": _TIMEOUTS})
            )
        except _AWAY as error:
            raise _unreachable(url.host, error) from None


_HEADERS = {
    "Accept": "*/*",
    # What is stored must be what was sent: no encoding of the way.
    "Accept-Encoding": "identity",
    "User-Agent": "kinora",
}


async def _write(answer: httpcore.Response, target: Path, have: int, work: Work) -> None:
    with target.open("r+b" if have else "wb") as file:
        file.seek(have)
        block = bytearray()
        try:
            async for chunk in _received("", answer):
                work.took(len(chunk))
                block += chunk
                if len(block) >= BLOCK_BYTES:
                    full, block = block, bytearray()
                    await asyncio.to_thread(file.write, full)
        finally:
            file.write(block)  # the next try goes on behind it


async def _received(url: str, answer: httpcore.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_stream():
            yield chunk
    except _AWAY:
        raise _broke_off(url) from None


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _parsed(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except httpx.InvalidURL:
        raise SourceFailed(f"{_shown(url)} is not an address", code="source_unusable") from None


def _redirected(first: str, current: httpx.URL, location: str) -> httpx.URL:
    try:
        following = current.join(location)
    except httpx.InvalidURL:
        following = httpx.URL("")
    if not location or following.scheme not in ("http", "https") or not following.host:
        raise SourceFailed(f"{_shown(first)} redirects to nowhere useful", code="source_redirects")
    if following.userinfo:
        raise SourceFailed(f"{_shown(first)} redirects to a URL with credentials", code="source_redirects")
    if current.scheme == "https" and following.scheme == "http":
        raise SourceFailed(
            f"{_shown(first)} redirects from https to http ({following.host}), where anybody can change what"
            " arrives; find an https address",
            code="source_redirects",
        )
    return following


def _check(url: str, status: int) -> None:
    if status in (200, 206):
        return
    shown = _shown(url)
    if status in (401, 403, 407):
        raise SourceFailed(
            f"{shown} refuses access ({status}); store a credential with `kinora secrets set` and name it",
            code="source_refused",
        )
    if status in (404, 410):
        raise SourceFailed(
            f"there is nothing at {shown} ({status}); check the address", code="source_missing"
        )
    if status == 429 or status >= 500:
        raise SourceFailed(f"{shown} answers {status}; try later", code="source_unreachable", retryable=True)
    raise SourceFailed(f"{shown} answers {status} instead of the files", code="source_unusable")


def _headers(answer: httpcore.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}


def _validator(headers: Mapping[str, str]) -> str:
    """What proves that the rest is of the same file; a weak tag does not."""
    if "bytes" not in headers.get("accept-ranges", "") and "content-range" not in headers:
        return ""
    tag = headers.get("etag", "")
    return tag if tag.startswith('"') else headers.get("last-modified", "")


def _begins_at(headers: Mapping[str, str], offset: int) -> bool:
    return headers.get("content-range", "").startswith(f"bytes {offset}-")


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _shown(url: str) -> str:
    return url.split("?")[0] or "the source"


def _broke_off(url: str) -> SourceFailed:
    return SourceFailed(f"{_shown(url)} broke off", code="source_unreachable", retryable=True)


def _unreachable(host: str, error: Exception) -> SourceFailed:
    return SourceFailed(
        f"{host} does not answer ({type(error).__name__}); check the address, or try later",
        code="source_unreachable",
        retryable=True,
    )
