"""Brings events that have their positions already into the log by COPY: for restores and migrations.

Nothing is decided here and nothing rewritten: bytes and positions are kept, so that every hash and every
proof over them stays valid. What the log promises of appends is checked of what is brought in, too:
positions grow, behind everything that is there, and no stream's version is missing.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Self
from uuid import UUID

from psycopg import Cursor
from psycopg import errors as pg
from psycopg.rows import DictRow

from command_api.eventlog.errors import ImportRefused
from command_api.eventlog.tables import EVENTS
from schemas.envelope import split_type
from schemas.ids import id_uuid


class EventRow(NamedTuple):
    """A row of `kinora_events`; the fields behind `state` repeat what it holds."""

    notification_id: int
    originator_id: UUID
    originator_version: int
    topic: str
    state: bytes
    event_id: str
    stream_id: str
    organization_id: str | None
    workspace_id: str | None
    actor: str
    correlation_id: str
    causation_id: str
    recorded_at: datetime

    @classmethod
    def of(cls, position: int, state: bytes, envelope: Mapping[str, Any]) -> Self:
        """The row of an event; `envelope` is its `state` as JSON values.

        Raises:
            KeyError, TypeError, ValueError: when it is not an envelope.
        """
        stream_id = str(envelope["subject"])
        return cls(
            position,
            id_uuid(stream_id),
            int(envelope["streamversion"]),
            split_type(str(envelope["type"]))[0],
            state,
            envelope["id"],
            stream_id,
            envelope.get("organization"),
            envelope.get("workspace"),
            envelope["actor"],
            envelope["correlationid"],
            envelope["causationid"],
            datetime.fromisoformat(envelope["time"]),
        )


TYPES = (
    *("int8", "uuid", "int8", "text", "bytea"),
    *("text", "text", "text", "text", "text", "text", "text", "timestamptz"),
)
COPY = f"COPY {EVENTS} ({', '.join(EventRow._fields)}) FROM STDIN (FORMAT BINARY)"
LOCK = f"LOCK TABLE {EVENTS} IN EXCLUSIVE MODE"
"""The appenders' own lock: positions are drawn under it, so nobody's can fall among those brought in."""
HEAD = "SELECT coalesce(max(notification_id), 0) AS head FROM kinora_events"

# Only where the first version brought in is not 1: two equal versions the primary key finds by itself.
_GAPS = """
    SELECT stream_id, version FROM unnest(%s::uuid[], %s::bigint[], %s::text[])
        AS begins (originator_id, version, stream_id)
    WHERE NOT EXISTS (
        SELECT FROM kinora_events AS present
        WHERE present.originator_id = begins.originator_id AND originator_version = begins.version - 1
    )
    LIMIT 1
"""
# In the order in which they were made, with the words that make them again.
_INDEXES = """
    SELECT CASE WHEN conname IS NULL THEN format('DROP INDEX %s', indexrelid::regclass)
                ELSE format('ALTER TABLE kinora_events DROP CONSTRAINT %I', conname) END AS drop,
           CASE WHEN conname IS NULL THEN pg_get_indexdef(indexrelid)
                ELSE format('ALTER TABLE kinora_events ADD CONSTRAINT %I %s', conname,
                            pg_get_constraintdef(pg_constraint.oid)) END AS make
    FROM pg_index LEFT JOIN pg_constraint ON conindid = indexrelid
    WHERE indrelid = 'kinora_events'::regclass
    ORDER BY indexrelid
"""
_TRUNCATE = f"TRUNCATE {EVENTS}"
_SORT_MEMORY = "SET LOCAL maintenance_work_mem = '128MB'"
_SET_SEQUENCE = "SELECT setval(pg_get_serial_sequence('kinora_events', 'notification_id'), %s)"
_NOTIFY = f"NOTIFY {EVENTS}"


@dataclass(slots=True)
class Imported:
    """What was brought in so far."""

    head: int
    """Position of the last event."""
    events: int = 0
    versions: dict[UUID, int] = field(default_factory=dict)
    """The last version of each stream: what grows with the number of streams, not of events."""
    begins: list[tuple[UUID, int, str]] = field(default_factory=list)
    """Streams that go on from a version that has to be in the log already."""

    def check(self, rows: Iterable[EventRow]) -> Iterator[EventRow]:
        """The same rows, refused where one cannot stand behind those before it."""
        versions, head = self.versions, self.head
        for row in rows:
            if row.notification_id <= head:
                raise ImportRefused(
                    f"{row.event_id} has position {row.notification_id}, but {head} is taken already; bring"
                    " events in the order of their positions, into a log that ends before the first of them"
                )
            expected = versions.get(row.originator_id, 0) + 1
            if row.originator_version != expected:
                if expected != 1:
                    raise _gap(row.stream_id, row.originator_version, expected - 1)
                self.begins.append((row.originator_id, row.originator_version, row.stream_id))
            versions[row.originator_id] = row.originator_version
            head = self.head = row.notification_id
            self.events += 1
            yield row


def import_rows(cursor: Cursor[DictRow], rows: Iterable[EventRow]) -> Imported:
    """Copy rows in, in the caller's transaction: they become visible, and listeners are woken, with it.

    The caller makes sure that the columns repeat what `state` holds.

    Raises:
        ImportRefused: for a position that is taken or out of order, a version that is missing or there
            already, or a repeated event id. The transaction has to be rolled back then.
    """
    cursor.execute(LOCK)
    head = cursor.execute(HEAD).fetchone()
    imported = Imported(head["head"] if head else 0)
    try:
        with _without_indexes(cursor) if imported.head == 0 else nullcontext(), cursor.copy(COPY) as copy:
            copy.set_types(TYPES)
            for row in imported.check(rows):
                copy.write_row(row)
    except pg.UniqueViolation as error:
        raise ImportRefused(
            f"the log holds one of these events already: {error.diag.message_detail};"
            " bring in only what comes after it"
        ) from error
    if imported.begins:
        gap = cursor.execute(
            _GAPS, [list(column) for column in zip(*imported.begins, strict=True)]
        ).fetchone()
        if gap:
            raise _gap(gap["stream_id"], gap["version"], None)
    if imported.events:
        cursor.execute(_SET_SEQUENCE, (imported.head,))
        cursor.execute(_NOTIFY)
    return imported


@contextmanager
def _without_indexes(cursor: Cursor[DictRow]) -> Iterator[None]:
    """Drop the indexes of an empty log and make them again at the end: sorting is cheaper than inserting.

    The emptied table is a new file, which PostgreSQL with ``wal_level = minimal`` flushes at the commit
    instead of writing everything to its own log first. Until then nobody else can read the log.
    """
    cursor.execute(_TRUNCATE)
    indexes = cursor.execute(_INDEXES).fetchall()
    for index in indexes:
        cursor.execute(index["drop"])
    yield
    cursor.execute(_SORT_MEMORY)
    for index in indexes:
        cursor.execute(index["make"])


def _gap(stream_id: str, version: int, last: int | None) -> ImportRefused:
    known = f"version {version - 1} is not in the log" if last is None else f"its last one before is {last}"
    return ImportRefused(
        f"{stream_id} would go on with version {version}, but {known}; bring in whole histories, in order"
    )
