"""Filling a view's empty tables from a slice of the log: streams folded in memory, rows brought in by COPY.

Synchronous, for a thread or a process of its own. A stream with an event that cannot be folded is parked at
that event, with the rows of the events before it, just as the views' own tasks park it.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import structlog
from psycopg.types.json import Jsonb

from projections.copying import copy_rows
from projections.folding import is_events_fault
from projections.parking import described
from projections.slices import Slice
from projections.view import Row, Rows, StreamFold, View, next_schema
from schemas.envelope import Recorded

log = structlog.get_logger(__name__)

FETCH = 500
"""Events in memory as bytes at a time."""
SAMPLED_STREAMS = 3
"""Of each slice and view."""

_EVENTS = """
SELECT notification_id, stream_id, topic, state
  FROM public.kinora_events
 WHERE originator_id > %(after)s AND originator_id <= %(last)s AND notification_id <= %(until)s
   AND (%(types)s::text[] IS NULL OR topic = ANY(%(types)s))
 ORDER BY originator_id, originator_version
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A view whose next generation is filled."""

    view: View
    generation: int


@dataclass(slots=True)
class _Failure:
    """Where a stream stopped."""

    stream_id: str
    position: int
    last_position: int
    error: Exception
    events: int = 1


@dataclass(slots=True)
class _Filling:
    """One view's share of a slice."""

    target: Target
    rows: defaultdict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    failures: list[_Failure] = field(default_factory=list)
    sample: dict[str, int] = field(default_factory=dict)
    waiting: list[Recorded] = field(default_factory=list)
    """The stream's next events, folded in one go for the sake of speed."""
    fold: StreamFold | None = None
    failure: _Failure | None = None
    events: int = 0
    first_position: int = 0
    last_position: int = 0
    streams: int = 0

    def add_waiting(self) -> None:
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        self.last_position = waiting[-1].position
        if self.failure is not None:
            self._missed(waiting)
            return
        if self.fold is None:
            self.fold, self.first_position = self.target.view.begin(), waiting[0].position
        add, place = self.fold.add, 0
        try:
            for place, recorded in enumerate(waiting):  # noqa: B007 - read below
                add(recorded)
        except Exception as error:  # noqa: BLE001
            # The door of every fold: a fault of an event's own parks its stream.
            self.events += place
            self.failed(waiting[place].stream_id, waiting[place].position, error)
            self._missed(waiting[place + 1 :])
        else:
            self.events += len(waiting)

    def failed(self, stream_id: str, position: int, error: Exception) -> None:
        if self.failure is None:
            self.failure = _Failure(stream_id, position, position, error)
        else:
            self.failure.events += 1
            self.failure.last_position = position

    def _missed(self, behind: Sequence[Recorded]) -> None:
        """Events behind the one that failed."""
        assert self.failure is not None  # noqa: S101 - only called then
        if behind:
            self.failure.events += len(behind)
            self.failure.last_position = behind[-1].position

    def end(self, stream_id: str) -> Rows:
        """What the stream came to; ready for the next."""
        fold, self.fold = self.fold, None
        events, self.events = self.events, 0
        if self.failure is not None:
            self.failures.append(self.failure)
            self.failure = None
        elif fold is not None:
            self._pick(stream_id, events)
        return {} if fold is None else fold.rows()

    def _pick(self, stream_id: str, events: int) -> None:
        """Every stream of the slice has the same chance to be in the sample."""
        self.streams += 1
        if len(self.sample) < SAMPLED_STREAMS:
            self.sample[stream_id] = events
        elif random.random() < SAMPLED_STREAMS / self.streams:  # noqa: S311 - no secret
            self.sample.pop(random.choice(tuple(self.sample)))  # noqa: S311
            self.sample[stream_id] = events


def fill_slice(
    connection: psycopg.Connection[Any], targets: Sequence[Target], fill: int, until: int, part: Slice
) -> None:
    """Fold a slice of the log, up to position `until`, into views' next tables, in one transaction."""
    with connection.transaction():
        # It folds between two fetches, and for as long as that takes on a busy machine.
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = '5min'")
        try:
            with connection.transaction():
                fillings = _fold(connection, targets, until, part)
                for filling in fillings:
                    for table, rows in filling.rows.items():
                        _copy(connection, filling.target.view, table, rows)
        except Exception as error:
            if connection.closed or not is_events_fault(error):
                raise
            log.warning("rebuild.slice_failed", slice=part.number, reason=str(error))
            fillings = _fold(connection, targets, until, part, singly=True)
        for filling in fillings:
            for failure in filling.failures:
                _park(connection, filling.target, failure)
        sample = {filling.target.view.name: filling.sample for filling in fillings}
        connection.execute(
            "UPDATE projections.fill_slices SET done = true, sample = %s WHERE fill = %s AND number = %s",
            [Jsonb(sample), fill, part.number],
        )


def _fold(
    connection: psycopg.Connection[Any],
    targets: Sequence[Target],
    until: int,
    part: Slice,
    *,
    singly: bool = False,
) -> list[_Filling]:
    """The slice's rows in memory; `singly`, each stream's are stored at once, or it is parked."""
    fillings = [_Filling(target) for target in targets]
    everything = [filling for filling in fillings if filling.target.view.types is None]
    by_topic: dict[str, list[_Filling]] = {
        topic: [
            each for each in fillings if each.target.view.types is None or topic in each.target.view.types
        ]
        for filling in fillings
        for topic in filling.target.view.types or ()
    }
    values = {
        "after": part.after,
        "last": part.last,
        "until": until,
        "types": None if everything else list(by_topic),
    }

    def end(stream_id: str) -> None:
        for filling in fillings:
            filling.add_waiting()
            if filling.fold is None and filling.failure is None:
                continue
            if singly:
                _store(connection, filling, stream_id)
                continue
            for table, found in filling.end(stream_id).items():
                filling.rows[table].extend(found)

    current: str | None = None
    with connection.cursor("slice", binary=True) as cursor:
        cursor.execute(_EVENTS, values)
        while page := cursor.fetchmany(FETCH):
            for position, stream_id, topic, state in page:
                if stream_id != current:
                    if current is not None:
                        end(current)
                    current = stream_id
                interested = by_topic.get(topic, everything)
                try:
                    recorded = Recorded.from_state(position, state)
                except Exception as error:  # noqa: BLE001 - an event that cannot be read is parked, too
                    for filling in interested:
                        filling.add_waiting()
                        filling.failed(stream_id, position, error)
                    continue
                for filling in interested:
                    filling.waiting.append(recorded)
            for filling in fillings:
                filling.add_waiting()
    if current is not None:
        end(current)
    return fillings


def _store(connection: psycopg.Connection[Any], filling: _Filling, stream_id: str) -> None:
    first, last, events = filling.first_position, filling.last_position, filling.events
    if filling.failure is not None:
        last, events = filling.failure.last_position, events + filling.failure.events
    failures = len(filling.failures)
    try:
        with connection.transaction():
            for table, rows in filling.end(stream_id).items():
                _copy(connection, filling.target.view, table, rows)
    except Exception as error:
        if not is_events_fault(error):
            raise
        # Which of the events the server refuses is not known: all of them wait.
        del filling.failures[failures:]
        filling.sample.pop(stream_id, None)
        filling.failures.append(_Failure(stream_id, first, last, error, events))


def _copy(connection: psycopg.Connection[Any], view: View, table: str, rows: Sequence[Row]) -> None:
    (described_table,) = [each for each in view.tables if each.name == table]
    copy_rows(connection, next_schema(view.name), described_table, rows)


def _park(connection: psycopg.Connection[Any], target: Target, failure: _Failure) -> None:
    connection.execute(
        """
        INSERT INTO projections.parked_streams
               (view, generation, stream_id, first_position, last_position, events, error)
        VALUES (%s, %s, %s, %s, %s, %s, %s)
        """,
        [
            target.view.name,
            target.generation,
            failure.stream_id,
            failure.position,
            failure.last_position,
            failure.events,
            described(failure.error),
        ],
    )
