"""One shared tail of the log for everybody in a process who follows it."""

import asyncio
from bisect import bisect_right
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from psycopg import AsyncConnection

from projections.listening import EVENTS_CHANNEL, follow
from projections.reader import LogRow, read_head, read_page

PAGE = 500
PAGE_BYTES = 2 * 2**20


class LogEnd(Protocol):
    """Where a tail reads what is new."""

    async def head(self) -> int:
        """The position of the newest event; 0 for an empty log."""

    async def page(self, after: int, limit: int, *, max_bytes: int) -> list[LogRow]:
        """The next events behind `after`; fewer than asked for, by number and size, only at the log's end."""


class Interest(NamedTuple):
    """Whose events, or of which stream, somebody waits for; None for all."""

    organization_id: str | None = None
    stream_id: str | None = None


ANYTHING = Interest()


class LogTail:
    """The newest events, read once per process and shared by all who wait.

    With `keep_bytes` it also keeps that much of the newest events, so that followers which are not far
    behind are served by `since` without a query; and it wakes only those whom a new event may interest.
    """

    def __init__(self, conninfo: str, *, poll_seconds: float = 1.0, keep_bytes: int = 0) -> None:
        self._conninfo = conninfo
        self._poll_seconds = poll_seconds
        self._keep_bytes = keep_bytes
        self._waiting: defaultdict[Interest, set[asyncio.Future[int]]] = defaultdict(set)
        self._known = False
        self._head = 0
        self._floor = 0
        self._setbacks = 0
        self._kept: list[LogRow] = []
        self._kept_bytes = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(
            follow(self._conninfo, EVENTS_CHANNEL, self._wake, poll_seconds=self._poll_seconds),
            name="log-tail",
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    # ---- for followers ---------------------------------------------------------------------------

    @property
    def head(self) -> int:
        """The newest position seen; 0 before the first look."""
        return self._head

    @property
    def setbacks(self) -> int:
        """How often the log was found to end earlier than before: positions from before mean nothing then."""
        return self._setbacks

    async def wait(self, after: int, timeout: float | None = None) -> int:
        """Return the head once it is beyond `after`, or as it is when `timeout` seconds have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._head <= after:
                    await self.until(ANYTHING)
        return self._head

    def until(self, interest: Interest) -> asyncio.Future[int]:
        """Done with the next event that may be of interest; the result is the position before it.

        Up to there nothing of interest came since the call. It is done, with 0, when that cannot be said.
        """
        waiting = self._waiting[interest]
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting.add(future)
        future.add_done_callback(lambda done: self._forget(interest, done))
        return future

    def since(self, after: int, limit: int | None = None) -> list[LogRow] | None:
        """The first `limit` events behind `after`, or None when they are no longer (or not yet) kept."""
        if not self._keep_bytes or not self._known or after < self._floor:
            return None
        begin = bisect_right(self._kept, after, key=lambda row: row.position)
        return self._kept[begin : None if limit is None else begin + limit]

    # ---- at the log's end ------------------------------------------------------------------------

    async def look(self, log: LogEnd) -> None:
        """Take in what is new."""
        if not self._known:
            self._jump(await log.head())
        if not self._keep_bytes:
            head = await log.head()
            if head != self._head:
                self._jump(head)
            return
        rows = await log.page(self._head, PAGE, max_bytes=PAGE_BYTES)
        if not rows and await log.head() < self._head:
            # Put back to an earlier point: start afresh from its end.
            self._setbacks += 1
            self._jump(await log.head())
        while rows:
            self._arrive(rows)
            if len(rows) < PAGE and _size(rows) < PAGE_BYTES:
                return  # whatever was committed since is announced
            rows = await log.page(self._head, PAGE, max_bytes=PAGE_BYTES)

    async def _wake(self, connection: AsyncConnection[Any], _payloads: tuple[str, ...]) -> None:
        await self.look(_Connected(connection))

    def _jump(self, head: int) -> None:
        """The log ends here, whatever was known before."""
        self._kept, self._kept_bytes, self._floor, self._known = [], 0, head, True
        self._head = head
        for waiting in list(self._waiting.values()):
            _finish(waiting, 0)

    def _arrive(self, rows: list[LogRow]) -> None:
        before = self._head
        self._keep(rows)
        self._head = rows[-1].position
        for row in rows:
            if not self._waiting:
                return
            for interest in (
                ANYTHING,
                Interest(row.organization_id),
                Interest(None, row.stream_id),
                Interest(row.organization_id, row.stream_id),
            ):
                if waiting := self._waiting.get(interest):
                    _finish(waiting, before)
            before = row.position

    def _keep(self, rows: list[LogRow]) -> None:
        self._kept.extend(rows)
        self._kept_bytes += _size(rows)
        drop = 0
        while self._kept_bytes > self._keep_bytes and drop < len(self._kept):
            self._kept_bytes -= len(self._kept[drop].state)
            self._floor = self._kept[drop].position
            drop += 1
        del self._kept[:drop]

    def _forget(self, interest: Interest, future: asyncio.Future[int]) -> None:
        waiting = self._waiting.get(interest)
        if waiting is not None:
            waiting.discard(future)
            if not waiting:
                del self._waiting[interest]


def _size(rows: list[LogRow]) -> int:
    return sum(len(row.state) for row in rows)


def _finish(waiting: set[asyncio.Future[int]], result: int) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(result)
    waiting.clear()


@dataclass(frozen=True, slots=True)
class _Connected:
    connection: AsyncConnection[Any]

    async def head(self) -> int:
        return await read_head(self.connection)

    async def page(self, after: int, limit: int, *, max_bytes: int) -> list[LogRow]:
        return await read_page(self.connection, after, limit, max_bytes=max_bytes)
