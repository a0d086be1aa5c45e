"""Writes events, command rows and side rows in one transaction, in one global order.

The order of positions is the order of commits, because every append holds the table lock from before its
positions are drawn until it commits. A reader that follows positions can therefore never be overtaken.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from eventsourcing.persistence import InterfaceError, OperationalError, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from eventsourcing.utils import retry
from psycopg import Cursor
from psycopg.rows import DictRow
from psycopg.sql import SQL, Composed

from command_api.eventlog.arrays import Array, bigints, byteas, takes_arrays, texts, timestamps, uuids
from command_api.eventlog.mapper import StoredLoggedEvent
from command_api.eventlog.tables import CREATE_TABLES, EVENTS, LOCK_ID


class SideRow(Protocol):
    """Rows that stand or fall with a command's events, such as credentials.

    `write` may run more than once (after a lost connection), and may raise a `Refused` to refuse the
    command: then nothing of the transaction remains.
    """

    def write(self, cursor: Cursor[DictRow]) -> None: ...


@dataclass(frozen=True)
class CommandRow:
    """The row that makes one command idempotent for good."""

    principal: str
    key: str
    request_hmac: bytes
    stream_id: str | None


@dataclass(frozen=True)
class Entry:
    """One command's share of a transaction: how many of its events, and what goes with them."""

    event_count: int
    command: CommandRow | None = None
    rows: tuple[SideRow, ...] = field(default=())


INSERT_EVENTS = """
    INSERT INTO kinora_events (
        originator_id, originator_version, topic, state, event_id, stream_id,
        organization_id, workspace_id, actor, correlation_id, causation_id, recorded_at
    )
    SELECT originator_id, originator_version, topic, state, event_id, stream_id,
           organization_id, workspace_id, actor, correlation_id, causation_id, recorded_at
    FROM unnest(
        %s::uuid[], %s::bigint[], %s::text[], %s::bytea[], %s::text[], %s::text[],
        %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::timestamptz[]
    ) WITH ORDINALITY AS new (
        originator_id, originator_version, topic, state, event_id, stream_id,
        organization_id, workspace_id, actor, correlation_id, causation_id, recorded_at, place
    )
    ORDER BY place
    RETURNING notification_id
"""

# Under the table lock nobody else draws positions, so those of a transaction follow one another without a
# gap and the last one is the head. That spares a round trip: nobody has to ask for them first. Without
# events there is no lock, so where such a command stands is what its caller is going to be told.
INSERT_COMMANDS = """
    INSERT INTO kinora_commands (
        principal, key, request_hmac, stream_id, first_position, position, event_count
    )
    SELECT principal, key, request_hmac, stream_id,
           head.position - first_back, head.position - last_back, event_count
    FROM unnest(
        %s::text[], %s::text[], %s::bytea[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[]
    ) AS new (principal, key, request_hmac, stream_id, first_back, last_back, event_count)
    CROSS JOIN (
        SELECT coalesce(%s::bigint, max(notification_id), 0) AS position FROM kinora_events
    ) AS head
"""


class LogRecorder(PostgresApplicationRecorder):
    """The library's recorder with columns beside `state` and rows beside the events.

    `insert_events` is written anew rather than hooked: the library's own catches what is raised while ids
    are fetched and then still leaves its transaction by the committing door, so a side row that refuses in
    Python would be refused with its events stored.
    """

    def __init__(self, datastore: PostgresDatastore, *, events_table_name: str = EVENTS) -> None:
        if datastore.enable_db_functions:
            raise ValueError("POSTGRES_ENABLE_DB_FUNCTIONS loses events for a tailing reader; leave it unset")
        if events_table_name != EVENTS:
            raise ValueError(f"events table is {events_table_name!r}; the log's is always {EVENTS!r}")
        super().__init__(datastore, events_table_name=events_table_name)
        # Ours instead of the library's; its insert function, which skips the lock, is not even created.
        self.sql_create_statements: list[Composed] = [Composed([SQL(text)]) for text in CREATE_TABLES]

    def _create_table(self, curs: Cursor[DictRow]) -> None:
        curs.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_ID,))
        super()._create_table(curs)

    @retry((InterfaceError, OperationalError), max_attempts=10, wait=0.2)
    def insert_events(
        self,
        stored_events: Sequence[StoredEvent],
        *,
        entries: Sequence[Entry] = (),
        head: int | None = None,
        **kwargs: Any,
    ) -> Sequence[int]:
        """Store events, then each entry's command row, then its side rows: all or nothing.

        Without events the commands stand at `head`.

        After a lost COMMIT reply the retry raises `IntegrityError` although everything is stored:
        callers look their event ids up before they believe it.
        """
        rows = [row for entry in entries for row in entry.rows]
        with self.datastore.get_connection() as conn, conn.cursor() as curs:
            takes_arrays(curs)
            try:
                if not rows:
                    # One round trip in all: where a statement fails, those behind it are skipped, COMMIT too.
                    # Not by `conn.transaction()`, which inside a pipeline waits for BEGIN and before COMMIT.
                    with conn.pipeline():
                        curs.execute("BEGIN")
                        self._insert(curs, stored_events, entries, head)
                        conn.execute("COMMIT")
                else:
                    with conn.transaction():
                        with conn.pipeline():
                            self._insert(curs, stored_events, entries, head)
                        with conn.cursor() as rows_cursor:
                            for row in rows:
                                row.write(rows_cursor)
            except BaseException:
                if not conn.closed:
                    conn.rollback()
                raise
            return [row["notification_id"] for row in curs.fetchall()] if stored_events else ()

    def _insert(
        self,
        curs: Cursor[DictRow],
        stored_events: Sequence[StoredEvent],
        entries: Sequence[Entry],
        head: int | None,
    ) -> None:
        if stored_events:
            self._lock_table(curs)
            self._notify_channel(curs)
            self._insert_stored_events(curs, stored_events)
        columns = _command_columns(len(stored_events), entries)
        if columns is not None:
            commands = curs.connection.cursor()
            takes_arrays(commands)
            commands.execute(INSERT_COMMANDS, (*columns, None if stored_events else head))

    def _insert_stored_events(
        self, curs: Cursor[DictRow], stored_events: Sequence[StoredEvent], **_: Any
    ) -> None:
        logged = [self.with_columns(event) for event in stored_events]
        metadata = [event.metadata for event in logged]
        curs.execute(
            INSERT_EVENTS,
            (
                uuids([event.originator_id for event in logged]),
                bigints([event.originator_version for event in logged]),
                texts([event.topic for event in logged]),
                byteas([event.state for event in logged]),
                texts([one.event_id for one in metadata]),
                texts([event.stream_id for event in logged]),
                texts([one.organization_id for one in metadata]),
                texts([one.workspace_id for one in metadata]),
                texts([one.actor for one in metadata]),
                texts([one.correlation_id for one in metadata]),
                texts([one.causation_id for one in metadata]),
                timestamps([one.recorded_at for one in metadata]),
            ),
        )

    def with_columns(self, stored_event: StoredEvent) -> StoredLoggedEvent:
        """The row with its columns; only our mapper makes such rows."""
        if not isinstance(stored_event, StoredLoggedEvent):
            raise TypeError(f"{type(stored_event).__name__} has no metadata; write through EventLog.append")
        return stored_event


def _command_columns(events: int, entries: Sequence[Entry]) -> tuple[Array, ...] | None:
    """The command rows, their positions as distances from the last of the transaction's events."""
    commands: list[CommandRow] = []
    firsts: list[int] = []
    lasts: list[int] = []
    counts: list[int] = []
    left = events
    for entry in entries:
        first = left - 1
        left -= entry.event_count
        if entry.command is not None:
            commands.append(entry.command)
            firsts.append(first if entry.event_count else 0)
            lasts.append(left if entry.event_count else 0)
            counts.append(entry.event_count)
    if not commands:
        return None
    return (
        texts([command.principal for command in commands]),
        texts([command.key for command in commands]),
        byteas([command.request_hmac for command in commands]),
        texts([command.stream_id for command in commands]),
        bigints(firsts),
        bigints(lasts),
        bigints(counts),
    )
