"""One subscription: a cursor that reads pages of the log until it has caught up, then the shared tail.

Memory is one page. A client that reads slowly holds its own cursor back and nothing else: when the tail no
longer keeps what it needs, the next page comes from the log again. So there is never a gap and never a queue.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from command_api.feed import frames
from command_api.feed.frames import Frame
from projections.reader import LogReader, LogRow, LogTail

PAGE = 100

Send = Callable[[Frame], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events may pass: the caller's organization always, then what was asked for."""

    organization_id: str
    types: frozenset[str] | None = None
    stream_id: str | None = None
    workspace_id: str | None = None

    def admits(self, row: LogRow) -> bool:
        return (
            row.organization_id == self.organization_id
            and (self.types is None or row.type in self.types)
            and self.stream_id in (None, row.stream_id)
            and self.workspace_id in (None, row.workspace_id)
        )


@dataclass(slots=True)
class Subscription:
    """Sends every admitted event behind `position`, once and in order, for as long as it runs."""

    name: str
    selection: Selection
    position: int
    """Everything up to here was sent or is not admitted."""
    reader: LogReader
    tail: LogTail
    log_id: str
    acknowledged: int = 0
    _types: list[str] | None = field(init=False)

    def __post_init__(self) -> None:
        self._types = None if self.selection.types is None else sorted(self.selection.types)

    async def run(self, send: Send, head: int) -> None:
        """Catch up and follow, until cancelled. `head` is the log's end as the subscription began."""
        caught_up = False
        while True:
            # Taken before the rows are read: whatever is at or before `reached` is in them. The tail may
            # be behind the head that the subscription began with; then only the log itself will do.
            reached = self.tail.head
            rows = self.tail.since(self.position) if reached >= head else None
            complete = rows is not None
            if rows is None:
                reached = max(reached, head)
                rows = await self._page()
                complete = len(rows) < PAGE
            for row in rows:
                if self.selection.admits(row):
                    await send(frames.event(self.name, row.position, row.public(self.log_id)))
                self.position = row.position
            if not complete:
                continue
            self.position = max(self.position, reached)
            if not caught_up:
                await send(frames.caught_up(self.name, self.position))
                caught_up = True
            await self.tail.wait(self.position)

    async def _page(self) -> list[LogRow]:
        selection = self.selection
        return await self.reader.page(
            self.position,
            PAGE,
            types=self._types,
            organization_id=selection.organization_id,
            stream_id=selection.stream_id,
        )
