"""Decides units of requests on what the log has, or on what is remembered of it."""

import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace

from command_api.domain.errors import Conflict
from command_api.eventlog.errors import LogUnavailable
from command_api.eventlog.log import Append, EventLog
from command_api.eventlog.reader import StoredCommand
from command_api.handlers.base import Foreseen, Idempotency, Loaded
from command_api.handlers.decision import Clock, Handlers, Request, decide
from command_api.handlers.streams import PAGE_EVENTS, FoldCache, MustWait, PendingStreams, Unfinished
from schemas.envelope import Recorded


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
    def needs_the_head(self) -> bool:
        """Whether the outcome of one of its commands is that there was nothing new."""
        return any(isinstance(one, Append) and not one.events for one in self.verdicts)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is written and nothing more is to be found out: all refused, or done before."""
        return not any(isinstance(one, Append) for one in self.verdicts)

    @property
    def is_proven_by_its_commit(self) -> bool:
        """Whether it could not be committed if one of its streams had moved on, or a key had been used.

        So whatever it was decided on is what the log has then. A refusal, or a stream that is only read,
        has nothing by which the log could contradict it.
        """
        return self.pending.is_written_throughout and all(
            isinstance(one, Append) and one.events for one in self.verdicts
        )

    def outcomes(self, positions: Iterator[tuple[int, ...]], head: int) -> list[Answer]:
        """The answers, once it is committed; `positions` has those of each of its `appends` next."""
        answers: list[Answer] = []
        for verdict in self.verdicts:
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


@dataclass(slots=True)
class Known:
    """What one look at the log found, or what is remembered of it, and what was committed since."""

    commands: Mapping[Key, StoredCommand]
    streams: dict[str, Loaded | None]
    """None for one that was not read to its end."""
    taken: set[Key] = field(default_factory=set)
    """Keys of commands that were not carried out then, and are now."""


class Decider:
    """Runs requests against folded streams. Not for several threads."""

    def __init__(self, log: EventLog, handlers: Handlers, cache: FoldCache, clock: Clock) -> None:
        self._log = log
        self._handlers = handlers
        self._cache = cache
        self._clock = clock

    def look_up(self, requests: Iterable[Request]) -> Known:
        """Everything that is likely to be asked for, at once: a round trip for each takes longest of all."""
        keys: list[Key] = []
        streams: list[str] = []
        for request in requests:
            if one := request.context.idempotency:
                keys.append(key_of(one))
            streams.extend(self.foreseen(request))
        found = self._log.look_up(keys, self._cache.versions(streams), PAGE_EVENTS)
        return Known(found.commands, self._cache.advance(found))

    def remember(self, units: Iterable[Sequence[Request]]) -> tuple[Known, int]:
        """What is kept of the streams that units foresee, and how many of the first units that covers."""
        streams: dict[str, Loaded | None] = {}
        count = 0
        for requests in units:
            for request in requests:
                foreseen = self.foreseen(request)
                if not foreseen:
                    return Known({}, streams), count
                for stream_id in foreseen:
                    kept = self._cache.kept(stream_id)
                    if kept is None:
                        return Known({}, streams), count
                    streams[stream_id] = kept
            count += 1
        return Known({}, streams), count

    def foreseen(self, request: Request) -> Sequence[str]:
        """The streams that the handler is going to read, as far as it says."""
        handler = self._handlers.get(type(request.command))
        if isinstance(handler, Foreseen):
            with suppress(Exception):  # a hint; what is wrong with the command its handler will say
                return handler.streams_of(request.command)
        return ()

    def decide(self, requests: Sequence[Request], known: Known, barred: AbstractSet[str]) -> Decided:
        """Decide requests in order, each on top of those before.

        Raises:
            MustWait: one reads a stream that is `barred`.
            Unfinished: one reads a long stream, of which a page was read now.
            LogUnavailable: the database does not answer.
        """
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
                    here[key_of(one)] = index
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
        if one is not None and (stored := known.get(key_of(one))):
            _same_request(one, stored.request_hmac)
            return Outcome(stored.position, self._log.events_of(stored), replayed=True)
        if one is not None and (index := here.get(key_of(one))) is not None:
            earlier = verdicts[index]
            if isinstance(earlier, Append) and earlier.command is not None:
                _same_request(one, earlier.command.request_hmac)
            return Repeat(index)
        append = decide(request, self._handlers, pending, self._clock)
        append.stored  # noqa: B018 - written now: what cannot be stored exactly fails here, alone
        return append


def keys_of(requests: Iterable[Request]) -> set[Key]:
    return {key_of(one) for request in requests if (one := request.context.idempotency)}


def key_of(idempotency: Idempotency) -> Key:
    return idempotency.principal, idempotency.key


def _has_rows(append: Append) -> bool:
    return bool(append.events or append.command or append.rows)


def _same_request(idempotency: Idempotency, first_hmac: bytes) -> None:
    if not hmac.compare_digest(idempotency.request_hmac, first_hmac):
        raise Conflict(
            "this Idempotency-Key was used for another request; use a new key for a new request",
            code="idempotency_key_reused",
        )
