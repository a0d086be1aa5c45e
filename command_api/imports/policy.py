"""Starts what the board says is to be imported, a few at a time, and ends what was deleted meanwhile.

Driven by state, so a killed orchestrator begins the same imports again.
"""

import asyncio
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from command_api.imports.importer import FOLDER_PREFIX, Importer
from command_api.messaging.board import Item
from command_api.messaging.follower import Follower
from command_api.messaging.together import end

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 60.0
"""After an import whose end could not be recorded."""

Attempt = tuple[str, int]


class Imports:
    """The policy ImportRequested or ImportRetried → import → its end."""

    def __init__(self, follower: Follower, importer: Importer, *, at_once: int) -> None:
        self._follower = follower
        self._importer = importer
        self._at_once = at_once
        self._changed = follower.changed()
        self._running: dict[Attempt, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Import until cancelled."""
        try:
            while True:
                self._changed.clear()
                self._level()
                await self._changed.wait()
        finally:
            await end(list(self._running.values()))

    def _level(self) -> None:
        """Make what runs fit what the board wants."""
        wanted = {(item.item_id, item.attempt): item for item in self._follower.board.imports()}
        for attempt, task in self._running.items():
            if attempt not in wanted:
                task.cancel()
        for attempt, item in self._next(wanted):
            task = asyncio.create_task(self._import(attempt, item), name=f"import of {item.item_id}")
            self._running[attempt] = task

    def _next(self, wanted: dict[Attempt, Item]) -> Iterator[tuple[Attempt, Item]]:
        """Waiting imports, oldest first, those of organizations with the fewest running ones before."""
        busy = Counter(wanted[attempt].organization_id for attempt in self._running if attempt in wanted)
        waiting = {attempt: item for attempt, item in wanted.items() if attempt not in self._running}
        for _ in range(min(self._at_once - len(self._running), len(waiting))):
            attempt = min(waiting, key=lambda each: busy[waiting[each].organization_id])
            item = waiting.pop(attempt)
            busy[item.organization_id] += 1
            yield attempt, item

    async def _import(self, attempt: Attempt, item: Item) -> None:
        try:
            position = await self._importer.carry_out(item)
            if position is None:
                await self._follower.catch_up()
            else:
                await self._follower.reach(position)
        except Exception:  # the task's door: it has no caller
            logger.exception("import of %s broke off", item.item_id)
            # The board still wants it: what fails at once, for ever, must not take all there is.
            await asyncio.sleep(AGAIN_SECONDS)
        finally:
            del self._running[attempt]
            self._changed.set()


@asynccontextmanager
async def import_folder(work_folder: str) -> AsyncIterator[Path]:
    """Where imports work, empty at first: what a killed process left there is deleted."""
    if not work_folder:
        with tempfile.TemporaryDirectory(prefix="kinora-imports-", ignore_cleanup_errors=True) as made:
            yield Path(made)
        return
    folder = Path(work_folder)
    await asyncio.to_thread(_emptied, folder)
    yield folder


def _emptied(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in folder.glob(f"{FOLDER_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
