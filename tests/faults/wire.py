"""A wire that can be cut, slowed down or made to swallow answers: TCP proxies in front of real servers.

They know just enough of the two protocols to lose the one answer that matters: that a transaction was
committed, or that a message was stored. The server has done its work then, and its client cannot know.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

Upstream = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
Answer = Literal["commit", "publish"]

ANSWERS: dict[Answer, bytes] = {
    "commit": b"C\x00\x00\x00\x0bCOMMIT\x00",  # PostgreSQL's CommandComplete of a COMMIT
    "publish": b'"stream":"EVENTS"',  # JetStream's acknowledgement of what the relay published
}
CHUNK = 64 * 1024
GONE = (ConnectionError, OSError, asyncio.IncompleteReadError)


class Wire:
    """One listening port in front of one server; each fault counts how often it really happened."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._pairs: set[asyncio.Task[None]] = set()
        self._swallow: Counter[Answer] = Counter()
        self._clear = asyncio.Event()
        self._clear.set()
        self.delay_seconds = 0.0
        self.mute = False
        """Lose PostgreSQL's notifications, and nothing else."""
        self.happened: Counter[str] = Counter()
        self.port = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._clear.set()
        self._server.close()
        await self._end_all()
        await self._server.wait_closed()

    @property
    def carries(self) -> bool:
        """Whether anybody is connected."""
        return bool(self._pairs)

    # ---- faults ---------------------------------------------------------------------------------

    async def cut(self) -> None:
        """End every connection, in the middle of whatever it says."""
        self.happened["cut"] += len(self._pairs)
        await self._end_all()

    def swallow(self, answer: Answer, times: int = 1) -> None:
        """Lose the next answers of this kind, each together with its connection."""
        self._swallow[answer] += times

    def part(self) -> None:
        """Let nothing through and say nothing, as when a cable is pulled."""
        self.happened["parted"] += 1
        self._clear.clear()

    async def mend(self) -> None:
        """End what was parted: what had been said meanwhile is lost."""
        await self._end_all()
        self._clear.set()

    # ---- connections ----------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs.add(task)
        try:
            await self._carry(reader, writer)
        except (*GONE, asyncio.CancelledError):
            pass  # either side is gone, or a fault ended it
        finally:
            self._pairs.discard(task)
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._clear.wait()
        server_reader, server_writer = await self._upstream()
        try:
            there = asyncio.create_task(self._pump(reader, server_writer, ()))
            back = asyncio.create_task(self._pump(server_reader, writer, tuple(ANSWERS)))
            try:
                await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in (there, back):
                    each.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
        finally:
            server_writer.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, listen_for: tuple[Answer, ...]
    ) -> None:
        while chunk := await source.read(CHUNK):
            for answer in listen_for:
                if self._swallow[answer] and ANSWERS[answer] in chunk:
                    self._swallow[answer] -= 1
                    self.happened[f"{answer} swallowed"] += 1
                    return
            if self.mute and _only_notifies(chunk):
                self.happened["notification lost"] += 1
                continue
            if self.delay_seconds:
                self.happened["delayed"] += 1
                await asyncio.sleep(self.delay_seconds)
            await self._clear.wait()
            sink.write(chunk)
            await sink.drain()

    async def _end_all(self) -> None:
        ended = list(self._pairs)
        for pair in ended:
            pair.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*ended, return_exceptions=True)


def _only_notifies(chunk: bytes) -> bool:
    """Whether PostgreSQL says nothing here but that somebody notified: whole messages of type A."""
    place = 0
    while place < len(chunk) and chunk[place : place + 1] == b"A":
        place += 1 + int.from_bytes(chunk[place + 1 : place + 5])
    return place == len(chunk) > 0


def tcp(host: str, port: int) -> Upstream:
    """A server on a port."""

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(host, port)

    return connect


def unix(path: str) -> Upstream:
    """A server behind a Unix socket."""

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(path)

    return connect
