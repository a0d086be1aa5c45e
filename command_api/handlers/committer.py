"""The thread that stores what the writer decided, while the writer decides what comes next."""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from command_api.eventlog.log import EventLog
from command_api.handlers.deciding import Decided
from command_api.metrics import APPEND_EVENTS, APPEND_SECONDS


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a batch stands in the log now."""

    positions: list[tuple[int, ...]]
    """Of each append's events, in the order of the batch."""
    head: int
    """Where those commands stand that made no event."""


@dataclass(frozen=True, slots=True)
class Landed:
    """What became of the batch that was under way."""

    result: Stored | Exception


class Committer:
    """Owns the thread. One batch is under way at a time; `tell` is called on it when that has landed."""

    def __init__(self, log: EventLog, tell: Callable[[Landed], None]) -> None:
        self._log = log
        self._tell = tell
        self._queue: queue.SimpleQueue[Sequence[Decided] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kinora-committer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def send(self, batch: Sequence[Decided]) -> None:
        self._queue.put(batch)

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            self._tell(outcome_of(self._log, batch))


def outcome_of(log: EventLog, batch: Sequence[Decided]) -> Landed:
    """Store a batch, and say what became of it."""
    try:
        return Landed(store(log, batch))
    except Exception as error:  # noqa: BLE001 - the thread's door: the writer knows what to do about it
        return Landed(error)


def store(log: EventLog, batch: Sequence[Decided]) -> Stored:
    """Everything in one transaction, or nothing.

    Raises:
        VersionConflict, CommandRepeated, LogUnavailable, Refused: as `EventLog.append` does.
    """
    appends = [append for decided in batch for append in decided.appends]
    needs_the_head = any(decided.needs_the_head for decided in batch)
    # Before anything is stored: what fails afterwards would be told as if nothing had been.
    head = log.head() if needs_the_head else 0
    positions: list[tuple[int, ...]] = []
    if appends:
        with APPEND_SECONDS.time():
            positions = log.append(appends, head=head if needs_the_head else None)
        APPEND_EVENTS.observe(sum(len(append.events) for append in appends))
    # What stands in the rows of commands without events, too: a repeat is told the same.
    return Stored(positions, max([head, *(position for share in positions for position in share)]))
