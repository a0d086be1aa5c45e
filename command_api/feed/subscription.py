"""One subscription: a cursor that reads pages of the log until it has caught up, then the shared tail.

Memory is one page, and for a client that reads slowly a small part of one: it holds its own cursor back and
nothing else. What it does not take soon is forgotten, and read from the log again when its turn comes, as is
what the tail no longer keeps. So there is never a gap and never a queue.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from command_api.feed.conflation import INTERVAL_SECONDS, Conflation
from projections.reader import LogRow
from projections.tail import Interest, LogTail
from schemas.pins import Pins

PAGE = 500
PAGE_BYTES = 2**20
"""Of stored events; a single larger one makes a page of its own."""
STRIDE = 50
"""So many events are handed over at a time: what a slow client holds on to is not much more."""
PATIENCE_SECONDS = 0.25
"""How long the rest of a page is kept for a client that does not take what was handed over."""


class Pages(Protocol):
    """Where a subscription that is behind reads on."""

    async def page(
        self,
        after: int,
        limit: int,
        types: Sequence[str] | None = None,
        organization_id: str | None = None,
        stream_id: str | None = None,
        *,
        max_bytes: int | None = None,
    ) -> list[LogRow]:
        """The next events that fit; empty only when there are none."""


class Outlet(Protocol):
    """Where a subscription's frames go. Each call returns once the client has room for more."""

    async def events(self, sub: str, rows: Sequence[LogRow]) -> None:
        """These events come next."""

    async def caught_up(self, sub: str, position: int) -> None:
        """History ends here; what follows is live."""

    async def reset(self, sub: str, reason: str) -> None:
        """The log went back, and positions mean nothing any more; nothing follows."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events may pass: of one's own first of all, then what was asked for."""

    organization_id: str | None
    """None only for the one stream that is a person's own and no organization's."""
    types: frozenset[str] | None = None
    stream_id: str | None = None
    workspace_id: str | None = None

    def __post_init__(self) -> None:
        if self.organization_id is None and self.stream_id is None:
            raise ValueError("a selection is of an organization or of a person's own stream")

    @property
    def interest(self) -> Interest:
        """What the tail has to wake for."""
        return Interest(self.organization_id, self.stream_id)

    def admits(self, row: LogRow) -> bool:
        return (
            self.organization_id in (None, row.organization_id)
            and (self.types is None or row.type in self.types)
            and self.stream_id in (None, row.stream_id)
            and self.workspace_id in (None, row.workspace_id)
        )


class _WentBack(Exception):
    """The log ends before positions that were seen."""


@dataclass(slots=True)
class Subscription:
    """Sends every admitted event behind `position`, in order, for as long as it runs."""

    name: str
    selection: Selection
    position: int
    """Everything up to here was given to the client's connection, or is not admitted."""
    reader: Pages
    tail: LogTail
    head: int
    """The log's end as the subscription began."""
    conflated: bool = False
    pins: Pins = field(default_factory=dict)
    acknowledged: int = 0
    _types: list[str] | None = field(init=False)
    _setbacks: int = field(init=False)
    _parked: asyncio.Future[int] | None = field(init=False, default=None)
    _limit: int = field(init=False, default=PAGE)
    """Events of the next page; few behind one whose rest was forgotten."""

    def __post_init__(self) -> None:
        self._types = None if self.selection.types is None else sorted(self.selection.types)
        self._setbacks = self.tail.setbacks

    @property
    def progress(self) -> int:
        """As `position`, and also the head while the subscription waits for events that are of interest."""
        waits = self._parked is not None and not self._parked.done()
        return max(self.position, self.tail.head) if waits else self.position

    async def run(self, outlet: Outlet) -> None:
        """Catch up and follow, until cancelled or the log goes back."""
        caught_up = False
        try:
            while True:
                complete = await (self._conflate(outlet) if self.conflated else self._pass_on(outlet))
                if not complete:
                    continue
                if not caught_up:
                    await outlet.caught_up(self.name, self.position)
                    caught_up = True
                if self.tail.head <= self.position:
                    await self._wait()
        except _WentBack:
            await outlet.reset(self.name, "log_restored")

    async def _pass_on(self, outlet: Outlet) -> bool:
        rows, reached, complete = await self._more(self.position)
        self._limit = min(PAGE, 2 * self._limit)
        count, loop = len(rows), asyncio.get_running_loop()
        for end in range(STRIDE, count + STRIDE, STRIDE):
            forgetting = loop.call_later(PATIENCE_SECONDS, self._forget, rows, end)
            try:
                await self._hand_over(outlet, rows[end - STRIDE : end])
            finally:
                forgetting.cancel()
            if len(rows) < count and end >= len(rows):
                return False
        self._check_setbacks()
        self.position = reached
        return complete

    def _forget(self, rows: list[LogRow], end: int) -> None:
        """The client is slow: keep nothing for it but what it was handed."""
        del rows[end:]
        self._limit = STRIDE

    async def _conflate(self, outlet: Outlet) -> bool:
        """Collect for a moment, then send; the moments are what bounds the rate."""
        collected, reached, complete = Conflation(), self.position, False
        loop = asyncio.get_running_loop()
        until = loop.time() + INTERVAL_SECONDS
        while not (complete or collected.full or loop.time() >= until):
            rows, reached, complete = await self._more(reached)
            collected.add(rows)
        if newest := collected.take():
            for begin in range(0, len(newest), STRIDE):
                await self._hand_over(outlet, newest[begin : begin + STRIDE])
            await asyncio.sleep(max(0.0, until - loop.time()))
        self.position = reached
        return complete

    async def _more(self, after: int) -> tuple[list[LogRow], int, bool]:
        """What comes next, how far that leads, and whether that was the end of the log."""
        # Taken before the rows are read: whatever is at or before `reached` is in them. The tail may be
        # behind the head that the subscription began with; then only the log itself will do.
        reached = self.tail.head
        kept = self.tail.since(after, STRIDE) if reached >= self.head else None
        if kept is None:
            page = await self._page(after)
            if page:
                return [row for row in page if self.selection.admits(row)], page[-1].position, False
            return [], max(after, reached, self.head), True
        complete = len(kept) < STRIDE
        reached = max(after, reached) if complete else kept[-1].position
        return [row for row in kept if self.selection.admits(row)], reached, complete

    async def _hand_over(self, outlet: Outlet, rows: Sequence[LogRow]) -> None:
        self._check_setbacks()
        # Before they are sent: the client may acknowledge the first before the last has gone.
        self.position = rows[-1].position
        await outlet.events(self.name, [row.as_pinned(self.pins) for row in rows] if self.pins else rows)
        await asyncio.sleep(0)  # a client that takes everything at once lets others have their turn

    def _check_setbacks(self) -> None:
        if self.tail.setbacks != self._setbacks:
            raise _WentBack

    async def _wait(self) -> None:
        self._parked = self.tail.until(self.selection.interest)
        try:
            self.position = max(self.position, await self._parked)
        finally:
            self._parked = None

    async def _page(self, after: int) -> list[LogRow]:
        return await self.reader.page(
            after,
            self._limit,
            types=self._types,
            organization_id=self.selection.organization_id,
            stream_id=self.selection.stream_id,
            max_bytes=PAGE_BYTES,
        )
