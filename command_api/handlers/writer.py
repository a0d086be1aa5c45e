"""The process's one writer thread: it joins waiting commands into few transactions, in arrival order.

Per transaction the log takes a lock and PostgreSQL flushes to disk, so sharing one is what gives throughput.
No transaction holds two units that touch the same stream, and when one cannot be committed, each of its
units gets one of its own.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from command_api.domain.aggregates import Aggregate
from command_api.eventlog.errors import CommandRepeated, LogUnavailable, VersionConflict
from command_api.eventlog.log import EventLog
from command_api.handlers.base import Loaded
from command_api.handlers.deciding import Answer, Decided, Decider, Known, keys_of
from command_api.handlers.decision import Clock, Handlers, Request
from command_api.handlers.streams import FoldCache, MustWait, Unfinished
from command_api.metrics import APPEND_EVENTS, APPEND_SECONDS
from schemas.ids import Prefix

MAX_COMMANDS = 256
CAUTIOUS_ROUNDS = 16
"""So many times the log is looked at first after somebody else turned out to write the same streams."""
LINGER_SECONDS = 0.002
RETRIES = 3


Settled = tuple["asyncio.Future[Any]", object, Exception | None]


@dataclass(frozen=True)
class Unit:
    """Requests that were handed in together: decided in order, and committed together if at all possible."""

    requests: tuple[Request, ...]
    reply: "asyncio.Future[list[Answer]]"


@dataclass(frozen=True)
class LoadUnit:
    """A stream that somebody wants to see as it is after everything handed in before."""

    stream_id: str
    reply: "asyncio.Future[Loaded]"


class Replies:
    """Answers on their way to the event loops that wait: waking a loop takes longer than all else."""

    def __init__(self) -> None:
        self._ready: dict[asyncio.AbstractEventLoop, list[Settled]] = {}

    def add(self, unit: Unit | LoadUnit, answer: object) -> None:
        self._ready.setdefault(unit.reply.get_loop(), []).append((unit.reply, answer, None))

    def fail(self, units: Iterable[Unit | LoadUnit], error: Exception) -> None:
        for unit in units:
            self._ready.setdefault(unit.reply.get_loop(), []).append((unit.reply, None, error))

    def send(self) -> None:
        for loop, settled in self._ready.items():
            with suppress(RuntimeError):  # the loop was closed, so nobody waits any more
                loop.call_soon_threadsafe(_settle, settled)
        self._ready = {}


def _settle(settled: Iterable[Settled]) -> None:
    for reply, answer, error in settled:
        if reply.done():  # cancelled: nobody waits for it
            continue
        if error is None:
            reply.set_result(answer)
        else:
            reply.set_exception(error)


class Writer:
    """Owns the thread. Everything but `submit`, `start` and `stop` runs on it."""

    def __init__(
        self, log: EventLog, handlers: Handlers, aggregates: Mapping[Prefix, Aggregate], clock: Clock
    ) -> None:
        self._log = log
        self._cache = FoldCache(log, aggregates)
        self._decider = Decider(log, handlers, self._cache, clock)
        self._queue: queue.SimpleQueue[Unit | LoadUnit | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._open = False
        self._last_gathered = 1
        self._caution = 0
        self._replies = Replies()
        self._aside: list[Unit | LoadUnit] = []
        """What reads a long stream, in order: it goes on with the next turn, before what came later."""
        self._thread = threading.Thread(target=self._run, name="kinora-writer", daemon=True)

    def start(self) -> None:
        self._open = True
        self._thread.start()

    def stop(self) -> None:
        """Finish everything handed in so far, then end the thread."""
        with self._guard:
            self._open = False
            self._queue.put(None)
        self._thread.join()

    def submit(self, unit: Unit | LoadUnit) -> None:
        with self._guard:
            if not self._open:
                raise RuntimeError("the command bus is closed")
            self._queue.put(unit)

    # ---- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        stopping = False
        while not stopping or self._aside:
            aside, self._aside = self._aside, []
            units, stopping = ([], True) if stopping else self._gather(wait=not aside)
            self._work_off(deque(unit for unit in (*aside, *units) if not unit.reply.cancelled()))

    def _gather(self, *, wait: bool) -> tuple[list[Unit | LoadUnit], bool]:
        """Take what waits. Only where there was company before is more waited for, so one caller never is."""
        units: list[Unit | LoadUnit] = []
        count = 0
        deadline: float | None = None
        while count < MAX_COMMANDS:
            try:
                if deadline is None:
                    unit = self._queue.get(block=wait)
                    deadline = time.monotonic() + LINGER_SECONDS
                elif count < self._last_gathered and (left := deadline - time.monotonic()) > 0:
                    unit = self._queue.get(timeout=left)
                else:
                    unit = self._queue.get_nowait()
            except queue.Empty:
                break
            if unit is None:
                return units, True
            units.append(unit)
            count += len(unit.requests) if isinstance(unit, Unit) else 1
        self._last_gathered = count
        return units, False

    def _work_off(self, waiting: deque[Unit | LoadUnit]) -> None:
        known: Known | None = None
        self._cache.begin_turn()
        while waiting:
            first = waiting[0]
            if isinstance(first, LoadUnit):
                waiting.popleft()
                self._load(first, waiting)
            else:
                known = self._commit_some(waiting, first, known)
            self._replies.send()

    def _load(self, unit: LoadUnit, waiting: deque[Unit | LoadUnit]) -> None:
        try:
            self._replies.add(unit, self._cache.load(unit.stream_id))
        except Unfinished:
            self._aside.append(unit)
        except LogUnavailable as error:
            self._replies.fail([unit, *waiting], error)
            waiting.clear()
        except Exception as error:  # noqa: BLE001 - the thread's door: whoever asked gets the error
            self._replies.fail([unit], error)

    def _commit_some(self, waiting: deque[Unit | LoadUnit], first: Unit, known: Known | None) -> Known | None:
        """Decide units in order until one must wait, and commit those together.

        Returns what is known for those behind; None when the log has to be looked at again.
        """
        units: list[Unit] = []
        for unit in waiting:
            if not isinstance(unit, Unit):
                break
            units.append(unit)
        if known is None and (done := self._commit_from_memory(units)):
            for _ in range(done):
                waiting.popleft()
            return None
        try:
            if known is None or not known.taken.isdisjoint(keys_of(first.requests)):
                known = self._decider.look_up(
                    request for unit in waiting if isinstance(unit, Unit) for request in unit.requests
                )
            batch, aside = self._decide_some(units, known)
        except LogUnavailable as error:
            # All of them, because those behind would each wait for the same dead database.
            self._replies.fail(waiting, error)
            waiting.clear()
            return None
        except Exception as error:  # noqa: BLE001 - the thread's door: whoever asked gets the error
            self._replies.fail(units, error)
            batch, known, done = [], None, len(units)
        else:
            self._aside += aside
            done = len(batch) + len(aside)
        if batch and not self._commit_together(batch):
            known = None
        for _ in range(done):
            waiting.popleft()
        return known

    def _commit_from_memory(self, units: Sequence[Unit]) -> int:
        """Commit the first units without a look at the log, where their commit proves them; returns how many.

        An agent's reports go on with streams that this process wrote last, so that look mostly finds nothing.
        Units that turn out to be different are undone as a whole, and decided on what the log has.
        """
        if self._caution:
            self._caution -= 1
            return 0
        batch: list[tuple[Unit, Decided]] = []
        try:
            known, count = self._decider.remember(unit.requests for unit in units)
            remembered = units[:count]
            decisions, _ = self._decide_some(remembered, known)
            for first, (unit, decided) in zip(remembered, decisions, strict=False):
                if unit is not first or not decided.is_proven_by_its_commit:
                    break
                batch.append((unit, decided))
            if not batch:
                return 0
            answers = self._commit([decided for _, decided in batch])
        except LogUnavailable as error:
            # What was to be stored may be stored: it must not be decided a second time.
            self._replies.fail([unit for unit, _ in batch], error)
        except Exception:  # noqa: BLE001 - nothing was stored; deciding on what the log has finds what it was
            self._caution = CAUTIOUS_ROUNDS
            return 0
        else:
            for (unit, _), own in zip(batch, answers, strict=True):
                self._replies.add(unit, own)
        return len(batch)

    def _commit_together(self, batch: Sequence[tuple[Unit, Decided]]) -> bool:
        """False when that could not be."""
        units = [unit for unit, _ in batch]
        try:
            answers = self._commit([decided for _, decided in batch])
        except LogUnavailable as error:
            self._replies.fail(units, error)
        except Exception:  # noqa: BLE001 - whatever it was, giving each unit its own transaction finds it
            self._commit_each(units)
        else:
            for unit, own in zip(units, answers, strict=True):
                self._replies.add(unit, own)
            return True
        return False

    def _decide_some(
        self, units: Sequence[Unit], known: Known
    ) -> tuple[list[tuple[Unit, Decided]], list[Unit]]:
        """What can be committed together, and what reads a long stream: the units' beginning in all."""
        batch: list[tuple[Unit, Decided]] = []
        aside: list[Unit] = []
        barred: set[str] = set()
        for unit in units:
            own_keys = keys_of(unit.requests)
            if not known.taken.isdisjoint(own_keys):
                break
            try:
                decided = self._decider.decide(unit.requests, known, barred)
            except MustWait:
                break
            except Unfinished:
                aside.append(unit)
                continue
            batch.append((unit, decided))
            barred |= decided.pending.written
            known.taken |= own_keys
        return batch, aside

    def _commit_each(self, units: Sequence[Unit]) -> None:
        for index, unit in enumerate(units):
            try:
                self._replies.add(unit, self._alone(unit.requests))
            except LogUnavailable as error:
                self._replies.fail(units[index:], error)
                return
            except Exception as error:  # noqa: BLE001 - the thread's door: whoever asked gets the error
                self._replies.fail([unit], error)
            self._replies.send()

    def _alone(self, requests: tuple[Request, ...]) -> list[Answer]:
        """Decide and commit one unit by itself; when even that fails, each of its requests by itself."""
        problem: Exception
        for _ in range(1 + RETRIES):
            try:
                return self._commit([self._decide_to_the_end(requests)])[0]
            except (VersionConflict, CommandRepeated) as error:
                problem = error
            except LogUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - a refusal by a row, or a bug; either way only of one request
                problem = error
                break
        if len(requests) == 1:
            return [problem]
        return [answer for request in requests for answer in self._alone((request,))]

    def _decide_to_the_end(self, requests: tuple[Request, ...]) -> Decided:
        """Whatever is long was read already in the turn that had to be given up."""
        while True:
            self._cache.begin_turn()
            try:
                return self._decider.decide(requests, self._decider.look_up(requests), frozenset())
            except Unfinished:
                continue

    # ---- committing -----------------------------------------------------------------------------

    def _commit(self, batch: Sequence[Decided]) -> list[list[Answer]]:
        """Everything in one transaction, or nothing.

        Raises:
            VersionConflict, CommandRepeated, LogUnavailable, Refused: as `EventLog.append` does.
        """
        appends = [append for decided in batch for append in decided.appends]
        needs_the_head = any(decided.needs_the_head for decided in batch)
        # Before anything is stored: what fails afterwards would be told as if nothing had been.
        head = self._log.head() if needs_the_head else 0
        shares: list[tuple[int, ...]] = []
        if appends:
            with APPEND_SECONDS.time():
                shares = self._log.append(appends, head=head if needs_the_head else None)
            APPEND_EVENTS.observe(sum(len(append.events) for append in appends))
        for decided in batch:
            decided.pending.committed()
        # What stands in the rows of commands without events, too: a repeat is told the same.
        head = max([head, *(position for share in shares for position in share)])
        positions = iter(shares)
        return [decided.outcomes(positions, head) for decided in batch]
