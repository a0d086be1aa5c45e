"""Keeps the board level with the log."""

import asyncio
import logging
from collections.abc import Callable

from pydantic import ValidationError

from command_api.eventlog.errors import LogTooNew, LogUnavailable
from command_api.eventlog.log import EventLog
from command_api.eventlog.reader import RawEvent
from command_api.messaging.board import LIFECYCLE_TYPES, Board, Item
from schemas.envelope import Recorded
from schemas.events import UnknownEventType

logger = logging.getLogger(__name__)

PAGE = 1000

Listener = Callable[[Item | None, Recorded], None]
"""Gets the item as it was before the event, if there was one."""


class Follower:
    """Reads lifecycle events in order and folds them; the only writer of its board."""

    def __init__(self, log: EventLog, board: Board, wake: asyncio.Event) -> None:
        self.board = board
        self._log = log
        self._wake = wake
        self._seen = 0
        self._lock = asyncio.Lock()
        self._changed: list[asyncio.Event] = []
        self._listeners: list[Listener] = []

    def changed(self) -> asyncio.Event:
        """An event that is set whenever something moved on the board."""
        event = asyncio.Event()
        event.set()
        self._changed.append(event)
        return event

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every event that is folded from now on."""
        self._listeners.append(listener)

    async def catch_up(self) -> None:
        """Fold everything that the log held when this was called.

        Raises:
            LogUnavailable: when the database does not answer.
            LogTooNew: at an event that this release cannot read; everything before it is folded.
        """
        async with self._lock:
            head, page = await asyncio.to_thread(self._read)
            moved = bool(page)
            while page:
                for raw in page:
                    self._fold(raw)
                if len(page) < PAGE:
                    break
                _, page = await asyncio.to_thread(self._read)
            self._seen = max(self._seen, head)
        if moved:
            for event in self._changed:
                event.set()

    async def reach(self, position: int) -> None:
        """Make sure that the event at `position` is on the board."""
        if self._seen < position:
            await self.catch_up()

    async def run(self) -> None:
        """Follow the log until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.catch_up()
            except LogUnavailable as error:
                logger.warning("board: %s; trying again", error)
                await asyncio.sleep(1)
                self._wake.set()

    def _read(self) -> tuple[int, list[RawEvent]]:
        # The head first: whatever it covers is then in the pages, because positions appear in commit order.
        head = self._log.head()
        if head <= self._seen:
            return head, []
        return head, self._log.read_all(self._seen, PAGE, types=LIFECYCLE_TYPES)

    def _fold(self, raw: RawEvent) -> None:
        try:
            recorded = raw.recorded()
        except (UnknownEventType, ValidationError) as error:
            raise LogTooNew(
                f"the {raw.type} of {raw.stream_id} at position {raw.position} cannot be read here:"
                f" {str(error).splitlines()[0]}"
            ) from error
        before = self.board.items.get(raw.stream_id)
        self.board.apply(recorded)
        self._seen = raw.position
        for listener in self._listeners:
            listener(before, recorded)
