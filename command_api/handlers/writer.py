"""The process's one writer thread: it joins waiting commands into few transactions, in arrival order.

Per transaction the log takes a lock and PostgreSQL flushes to disk, so sharing one is what gives throughput.
No transaction holds two units that touch the same stream, and when one cannot be committed, each of its
units gets one of its own.
"""

import asyncio
import hmac
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from command_api.domain.aggregates import Aggregate
from command_api.domain.errors import Conflict
from command_api.eventlog.errors import CommandRepeated, LogUnavailable, VersionConflict
from command_api.eventlog.log import Append, EventLog
from command_api.eventlog.reader import StoredCommand
from command_api.handlers.base import Foreseen, Idempotency, Loaded
from command_api.handlers.decision import Clock, Handlers, Request, decide
from command_api.handlers.streams import PAGE_EVENTS, FoldCache, MustWait, PendingStreams, Unfinished
from command_api.metrics import APPEND_EVENTS, APPEND_SECONDS
from schemas.envelope import Recorded
from schemas.ids import Prefix

MAX_COMMANDS = 256
CAUTIOUS_ROUNDS = 16
"""So many times the log is looked at first after somebody else turned out to write the same streams."""
LINGER_SECONDS = 0.002
RETRIES = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command that was not refused."""

    position: int
    """Position of its last event; the log's head when it made none."""
    events: tuple[Recorded, ...]
    replayed: bool
    """True when the command had been carried out before and this is that first outcome."""


Answer = Outcome | Exception
Key = tuple[str, str]
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


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same command stands earlier in the same unit; its outcome is that one's."""

    index: int


Verdict = Append | Repeat | Answer
"""A request before its commit: an `Append` stands for an outcome that is still to be had."""


@dataclass(frozen=True)
class Decided:
    """A unit that was decided and not yet committed."""

    verdicts: list[Verdict]
    pending: PendingStreams

    @property
    def appends(self) -> list[Append]:
        """What has to be written; a decision for nothing at all has nothing to write."""
        return [one for one in self.verdicts if isinstance(one, Append) and _has_rows(one)]

    @property
    def is_proven_by_its_commit(self) -> bool:
        """Whether it could not be committed if one of its streams had moved on, or a key had been used.

        So whatever it was decided on is what the log has then. A refusal, or a stream that is only read,
        has nothing by which the log could contradict it.
        """
        return self.pending.is_written_throughout and all(
            isinstance(one, Append) and one.events for one in self.verdicts
        )


@dataclass(slots=True)
class Known:
    """What one look at the log found for all commands that wait, and what was committed since."""

    commands: Mapping[Key, StoredCommand]
    streams: dict[str, Loaded | None]
    """None for one that was not read to its end."""
    taken: set[Key] = field(default_factory=set)
    """Keys of commands that were not carried out then, and are now."""


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
        self._handlers = handlers
        self._clock = clock
        self._cache = FoldCache(log, aggregates)
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
            if known is None or known.taken & _keys(first.requests):
                known = self._look_up(
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
        remembered, streams = self._remembered(units)
        try:
            decisions, _ = self._decide_some(remembered, Known({}, streams))
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

    def _remembered(self, units: Sequence[Unit]) -> tuple[list[Unit], dict[str, Loaded | None]]:
        """The first units whose streams are all kept, and those streams."""
        streams: dict[str, Loaded | None] = {}
        found: list[Unit] = []
        for unit in units:
            for request in unit.requests:
                foreseen = self._foreseen(request)
                if not foreseen:
                    return found, streams
                for stream_id in foreseen:
                    kept = self._cache.kept(stream_id)
                    if kept is None:
                        return found, streams
                    streams[stream_id] = kept
            found.append(unit)
        return found, streams

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
            own_keys = _keys(unit.requests)
            if known.taken & own_keys:
                break
            try:
                decided = self._decide(unit.requests, known, barred)
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
                return self._decide(requests, self._look_up(requests), frozenset())
            except Unfinished:
                continue

    # ---- deciding -------------------------------------------------------------------------------

    def _look_up(self, requests: Iterable[Request]) -> Known:
        """Everything that is likely to be asked for, at once: a round trip for each takes longest of all."""
        keys: list[Key] = []
        streams: list[str] = []
        for request in requests:
            if one := request.context.idempotency:
                keys.append(_key(one))
            streams.extend(self._foreseen(request))
        found = self._log.look_up(keys, self._cache.versions(streams), PAGE_EVENTS)
        return Known(found.commands, self._cache.advance(found))

    def _foreseen(self, request: Request) -> Sequence[str]:
        """The streams that the handler is going to read, as far as it says."""
        handler = self._handlers.get(type(request.command))
        if isinstance(handler, Foreseen):
            with suppress(Exception):  # a hint; what is wrong with the command its handler will say
                return handler.streams_of(request.command)
        return ()

    def _decide(self, requests: Sequence[Request], known: Known, barred: AbstractSet[str]) -> Decided:
        pending = PendingStreams(self._cache, barred, known.streams)
        verdicts: list[Verdict] = []
        here: dict[Key, int] = {}
        for index, request in enumerate(requests):
            fork = pending.fork()
            try:
                verdict = self._verdict(request, known.commands, here, verdicts, fork)
            except (MustWait, Unfinished, LogUnavailable):
                raise
            except Exception as error:  # noqa: BLE001 - refused, or a bug: the answer of this request alone
                verdict = error
            else:
                pending = fork
                if isinstance(verdict, Append) and (one := request.context.idempotency):
                    here[_key(one)] = index
            verdicts.append(verdict)
        return Decided(verdicts, pending)

    def _verdict(
        self,
        request: Request,
        known: Mapping[Key, StoredCommand],
        here: Mapping[Key, int],
        verdicts: Sequence[Verdict],
        pending: PendingStreams,
    ) -> Verdict:
        one = request.context.idempotency
        if one is not None and (stored := known.get(_key(one))):
            _same_request(one, stored.request_hmac)
            return Outcome(stored.position, self._log.events_of(stored), replayed=True)
        if one is not None and (index := here.get(_key(one))) is not None:
            earlier = verdicts[index]
            if isinstance(earlier, Append) and earlier.command is not None:
                _same_request(one, earlier.command.request_hmac)
            return Repeat(index)
        return decide(request, self._handlers, pending, self._clock)

    # ---- committing -----------------------------------------------------------------------------

    def _commit(self, batch: Sequence[Decided]) -> list[list[Answer]]:
        appends = [append for decided in batch for append in decided.appends]
        nothing_new = any(isinstance(v, Append) and not v.events for d in batch for v in d.verdicts)
        # Before anything is stored: what fails afterwards would be told as if nothing had been.
        head = self._log.head() if nothing_new else 0
        shares = self._append(appends, head if nothing_new else None) if appends else []
        for decided in batch:
            decided.pending.committed()
        # What stands in the rows of commands without events, too: a repeat is told the same.
        head = max([head, *(position for share in shares for position in share)])
        positions = iter(shares)
        return [self._outcomes(decided.verdicts, positions, head) for decided in batch]

    def _append(self, appends: Sequence[Append], head: int | None) -> list[tuple[int, ...]]:
        with APPEND_SECONDS.time():
            positions = self._log.append(appends, head=head)
        APPEND_EVENTS.observe(sum(len(append.events) for append in appends))
        return positions

    def _outcomes(
        self, verdicts: Sequence[Verdict], positions: Iterator[tuple[int, ...]], head: int
    ) -> list[Answer]:
        answers: list[Answer] = []
        for verdict in verdicts:
            match verdict:
                case Append():
                    share = next(positions) if _has_rows(verdict) else ()
                    events = tuple(
                        Recorded(
                            position=position,
                            stream_id=logged.stream_id,
                            version=logged.version,
                            metadata=logged.metadata,
                            event=logged.event,
                        )
                        for position, logged in zip(share, verdict.events, strict=True)
                    )
                    answers.append(Outcome(share[-1] if share else head, events, replayed=False))
                case Repeat(index):
                    first = answers[index]
                    answers.append(replace(first, replayed=True) if isinstance(first, Outcome) else first)
                case _:
                    answers.append(verdict)
        return answers


def _has_rows(append: Append) -> bool:
    return bool(append.events or append.command or append.rows)


def _keys(requests: Iterable[Request]) -> set[Key]:
    return {_key(one) for request in requests if (one := request.context.idempotency)}


def _key(idempotency: Idempotency) -> Key:
    return idempotency.principal, idempotency.key


def _same_request(idempotency: Idempotency, first_hmac: bytes) -> None:
    if not hmac.compare_digest(idempotency.request_hmac, first_hmac):
        raise Conflict(
            "this Idempotency-Key was used for another request; use a new key for a new request",
            code="idempotency_key_reused",
        )
