"""The process's one writer: it joins waiting commands into few transactions, in arrival order.

Per transaction the log takes a lock and PostgreSQL flushes to disk, so sharing one is what gives throughput.
While one batch is stored, the next is decided. Neither holds two units that touch the same stream, so nothing
is decided on what may yet fail to be stored. When a batch cannot be committed, each of its units gets a
transaction of its own before anything that came later.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from command_api.domain.aggregates import Aggregate
from command_api.eventlog.errors import CommandRepeated, LogUnavailable, VersionConflict
from command_api.eventlog.log import EventLog
from command_api.handlers.base import Loaded
from command_api.handlers.committer import Committer, Landed, Stored, outcome_of, store
from command_api.handlers.deciding import Answer, Decided, Decider, Key, Known, keys_of
from command_api.handlers.decision import Clock, Handlers, Request
from command_api.handlers.streams import FoldCache, MustWait, Unfinished
from schemas.ids import Prefix

MAX_COMMANDS = 256
DECIDED_AT_ONCE = 32
COMMAND_SECONDS = 0.0001
"""About what it takes to answer a caller and to decide the next command of his."""
LINGER_SECONDS = 0.002
CAUTIOUS_BATCHES = 16
"""So many times the log is looked at first after somebody else turned out to write the same streams."""
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


@dataclass(slots=True)
class Batch:
    """Units that were decided, in arrival order, and are going to be committed together."""

    units: list[Unit] = field(default_factory=list)
    decided: list[Decided] = field(default_factory=list)
    commands: int = 0
    streams: set[str] = field(default_factory=set)
    """What is written."""
    keys: set[Key] = field(default_factory=set)
    from_memory: bool = False
    """Whether some of it was decided without a look at the log."""

    def add(self, unit: Unit, decided: Decided, keys: Iterable[Key], *, from_memory: bool) -> None:
        self.units.append(unit)
        self.decided.append(decided)
        self.commands += len(unit.requests)
        self.streams |= decided.pending.written
        self.keys.update(keys)
        self.from_memory |= from_memory


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
        self._queue: queue.SimpleQueue[Unit | LoadUnit | Landed | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._open = False
        self._stopping = False
        self._waiting: deque[Unit | LoadUnit] = deque()
        """Not decided yet, in arrival order."""
        self._aside: list[Unit | LoadUnit] = []
        """What reads a long stream, in order: it goes on with the next turn, before what came later."""
        self._draft = Batch()
        self._under_way: Batch | None = None
        self._barred: set[str] = set()
        """The streams that these two write: nothing can be decided on them before that is stored."""
        self._taken: set[Key] = set()
        """The keys of their commands."""
        self._company = 1
        """How many commands there were when the last batch had landed, that batch's included."""
        self._sent = self._storing_seconds = 0.0
        """When the last batch was sent off, and how long the last one took."""
        self._caution = 0
        self._replies = Replies()
        self._committer = Committer(log, self._queue.put)
        self._thread = threading.Thread(target=self._run, name="kinora-writer", daemon=True)

    def start(self) -> None:
        self._open = True
        self._committer.start()
        self._thread.start()

    def stop(self) -> None:
        """Finish everything handed in so far, then end the threads."""
        with self._guard:
            self._open = False
            self._queue.put(None)
        self._thread.join()
        self._committer.stop()

    def submit(self, unit: Unit | LoadUnit) -> None:
        with self._guard:
            if not self._open:
                raise RuntimeError("the command bus is closed")
            self._queue.put(unit)

    # ---- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while not (self._stopping and self._is_idle):
            # A long stream's next page is read when a batch has landed: that one's callers come first.
            self._take(wait=self._under_way is not None or not (self._aside or self._stopping))
            self._turn()

    @property
    def _is_idle(self) -> bool:
        return not (self._waiting or self._aside or self._draft.units or self._under_way)

    def _turn(self) -> None:
        """Decide what waits, as far as possible, and send it off where nothing is under way."""
        self._waiting.extendleft(reversed(self._aside))
        self._aside = []
        self._cache.begin_turn()
        deadline = time.monotonic() + LINGER_SECONDS
        while True:
            while self._waiting and self._advance():
                self._send_unless_more_are_expected()
            self._replies.send()
            self._send_unless_more_are_expected()
            if not self._draft.units or self._under_way or self._waiting or self._aside:
                break
            if (left := deadline - time.monotonic()) <= 0:
                break
            self._take(wait=True, seconds=left)
        self._send_draft()

    def _take(self, *, wait: bool, seconds: float | None = None) -> None:
        """Everything that was handed in or has landed meanwhile."""
        while True:
            try:
                item = self._queue.get(block=wait, timeout=seconds if wait else None)
            except queue.Empty:
                return
            wait = False
            if item is None:
                self._stopping = True
            elif isinstance(item, Landed):
                self._land(item)
            elif not item.reply.cancelled():
                self._waiting.append(item)

    # ---- deciding -------------------------------------------------------------------------------

    def _advance(self) -> bool:
        """Decide some of what waits; False when the first of it must wait for what is being stored."""
        first = self._waiting[0]
        if isinstance(first, LoadUnit):
            return self._load(first)
        units = self._ready(DECIDED_AT_ONCE)
        if units and self._decide_from_memory(units):
            return True
        units = self._ready(MAX_COMMANDS)
        if not units:
            return False
        try:
            known = self._decider.look_up(request for unit in units for request in unit.requests)
        except LogUnavailable as error:
            self._fail_all(error)
        except Exception as error:  # noqa: BLE001 - the thread's door: whoever asked gets the error
            for unit in units:
                self._waiting.popleft()
                self._replies.fail([unit], error)
        else:
            try:
                return self._decide_some(units, known)
            except LogUnavailable as error:
                self._fail_all(error)
        return True

    def _fail_all(self, error: LogUnavailable) -> None:
        """Whatever waits, because those behind would each wait for the same dead database."""
        self._replies.fail(self._waiting, error)
        self._waiting.clear()

    def _load(self, unit: LoadUnit) -> bool:
        if self._draft.units or self._under_way:
            return False  # what was handed in before may be stored otherwise than it was decided
        self._waiting.popleft()
        try:
            self._replies.add(unit, self._cache.load(unit.stream_id))
        except Unfinished:
            self._aside.append(unit)
        except LogUnavailable as error:
            self._replies.fail([unit], error)
            self._fail_all(error)
        except Exception as error:  # noqa: BLE001 - the thread's door: whoever asked gets the error
            self._replies.fail([unit], error)
        return True

    def _ready(self, limit: int) -> list[Unit]:
        """The first units that, as far as they say, need not wait; of at most so many commands in all."""
        found: list[Unit] = []
        left = min(limit, MAX_COMMANDS - self._draft.commands)
        for unit in self._waiting:
            if left <= 0 or not isinstance(unit, Unit) or self._has_to_wait(unit):
                break
            found.append(unit)
            left -= len(unit.requests)
        return found

    def _has_to_wait(self, unit: Unit) -> bool:
        return not (
            self._taken.isdisjoint(keys_of(unit.requests))
            and all(self._barred.isdisjoint(self._decider.foreseen(request)) for request in unit.requests)
        )

    def _decide_from_memory(self, units: Sequence[Unit]) -> bool:
        """Draft the first units that their commit proves, without a look at the log; whether there were any.

        An agent's reports go on with streams that this process wrote last, so that look mostly finds nothing.
        A batch that turns out to be different is undone as a whole, and decided on what the log has.
        """
        if self._caution:
            return False
        for number, unit in enumerate(units):
            keys = keys_of(unit.requests)
            known = self._decider.remember(unit.requests) if self._taken.isdisjoint(keys) else None
            decided: Decided | None = None
            if known is not None:
                with suppress(Exception):  # deciding on what the log has finds what it was
                    decided = self._decider.decide(unit.requests, known, self._barred)
            if decided is None or not decided.is_proven_by_its_commit:
                return number > 0
            self._waiting.popleft()
            self._add_to_draft(unit, decided, keys, from_memory=True)
        return True

    def _decide_some(self, units: Sequence[Unit], known: Known) -> bool:
        """Draft the first units on what is known; whether there were any."""
        for number, unit in enumerate(units):
            keys = keys_of(unit.requests)
            if not self._taken.isdisjoint(keys):
                return number > 0
            try:
                decided = self._decider.decide(unit.requests, known, self._barred)
            except MustWait:
                return number > 0
            except Unfinished:
                self._aside.append(unit)
            else:
                if decided.is_settled:
                    self._replies.add(unit, decided.outcomes(iter(()), 0))
                else:
                    self._add_to_draft(unit, decided, keys, from_memory=False)
            self._waiting.popleft()
        return True

    def _add_to_draft(self, unit: Unit, decided: Decided, keys: set[Key], *, from_memory: bool) -> None:
        self._draft.add(unit, decided, keys, from_memory=from_memory)
        self._barred |= decided.pending.written
        self._taken |= keys

    # ---- committing -----------------------------------------------------------------------------

    def _send_unless_more_are_expected(self) -> None:
        """Wait for those who were there before, where that takes less than storing theirs separately.

        One caller alone never waits, and of many one half is decided while the other half's is stored.
        """
        missing = self._company - self._draft.commands
        if self._stopping or missing <= 0 or missing * COMMAND_SECONDS > self._storing_seconds:
            self._send_draft()

    def _send_draft(self) -> None:
        """Have the draft stored, if there is one and nothing is under way."""
        if self._under_way is not None or not self._draft.units:
            return
        self._under_way, self._draft = self._draft, Batch()
        self._sent = time.monotonic()
        if not self._under_way.from_memory:
            self._caution = max(0, self._caution - 1)
        if self._under_way.commands < self._company:
            self._committer.send(self._under_way.decided)
        else:  # nobody is expected to hand anything in meanwhile, and waking a thread takes long
            self._land(outcome_of(self._log, self._under_way.decided))

    def _land(self, landed: Landed) -> None:
        result = landed.result
        batch, self._under_way = self._under_way, None
        if batch is None:
            raise AssertionError("a batch landed that nobody sent")
        self._barred, self._taken = set(self._draft.streams), set(self._draft.keys)
        self._company = batch.commands + self._draft.commands + len(self._waiting)
        self._storing_seconds = time.monotonic() - self._sent
        if not isinstance(result, Stored):
            self._undo(batch, result)
        else:
            self._send_unless_more_are_expected()
            for unit, answers in zip(batch.units, self._answers(batch.decided, result), strict=True):
                self._replies.add(unit, answers)
        self._replies.send()

    def _undo(self, batch: Batch, error: Exception) -> None:
        """What came after a batch that was not stored is decided again, behind what becomes of that one."""
        self._waiting.extendleft(reversed(self._draft.units))
        self._draft, self._barred, self._taken = Batch(), set(), set()
        if isinstance(error, LogUnavailable):
            # What was to be stored may be stored: it must not be decided a second time.
            self._replies.fail(batch.units, error)
        elif batch.from_memory:
            self._caution = CAUTIOUS_BATCHES
            self._waiting.extendleft(reversed(batch.units))
        else:
            self._commit_each(batch.units)

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
                decided = self._decide_to_the_end(requests)
                return self._answers([decided], store(self._log, [decided]))[0]
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

    def _answers(self, batch: Sequence[Decided], stored: Stored) -> list[list[Answer]]:
        for decided in batch:
            decided.pending.committed()
        positions = iter(stored.positions)
        return [decided.outcomes(positions, stored.head) for decided in batch]
