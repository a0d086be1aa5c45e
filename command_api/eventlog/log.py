"""The log as the rest of the control plane sees it: append, read, and look a command up."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Literal, Self, TypeVar

from eventsourcing.persistence import IntegrityError, InterfaceError, OperationalError
from eventsourcing.postgres import PostgresDatastore
from psycopg import Cursor
from psycopg import errors as pg
from psycopg.rows import DictRow

from command_api.eventlog import reader
from command_api.eventlog.errors import (
    CommandRepeated,
    LogFull,
    LogMismatch,
    LogUnavailable,
    VersionConflict,
)
from command_api.eventlog.mapper import EnvelopeMapper, LoggedEvent, StoredLoggedEvent
from command_api.eventlog.reader import LookedUp, RawEvent, StoredCommand
from command_api.eventlog.recorder import CommandRow, Entry, LogRecorder, SideRow
from command_api.eventlog.tables import LOCK_ID, NAME_LOG
from schemas.envelope import Recorded
from schemas.ids import uuid7
from schemas.settings import PostgresSettings

POOL_SIZE = 2
MAX_OVERFLOW = 6
CONNECT_TIMEOUT_SECONDS = 3
LOCK_TIMEOUT_SECONDS = 10
IDLE_IN_TRANSACTION_SECONDS = 15
READ_PATIENCE_SECONDS = 2.0
"""Long enough to find out that every kept connection was cut, one after the other."""
READ_PAUSE_SECONDS = 0.02

T = TypeVar("T")

_MAPPER = EnvelopeMapper()


@dataclass(frozen=True)
class Append:
    """What one command wants stored; several of them may share a transaction."""

    events: tuple[LoggedEvent, ...]
    command: CommandRow | None = None
    rows: tuple[SideRow, ...] = ()

    @cached_property
    def stored(self) -> tuple[StoredLoggedEvent, ...]:
        """The events as rows, made once: whoever asks before `EventLog.append` does learns what is wrong.

        Raises:
            EventNotCanonical: an event cannot be stored exactly, or is too large.
        """
        return tuple(_MAPPER.to_stored_event(event) for event in self.events)


class EventLog:
    """The append-only log; synchronous and safe to share between threads."""

    def __init__(
        self, datastore: PostgresDatastore, recorder: LogRecorder, log_id: str, predecessors: frozenset[str]
    ) -> None:
        self.log_id = log_id
        self.predecessors = predecessors
        """The logs whose backups this one was restored from."""
        self._datastore = datastore
        self._recorder = recorder

    @classmethod
    def open(cls, settings: PostgresSettings, *, create_tables: bool = True) -> Self:
        """Connect, and make the tables and the log's id where they are missing.

        Raises:
            LogUnavailable: when the database does not answer.
            LogMismatch: when `create_tables` is False and there is no log, or positions are drawn otherwise
                than one by one.
        """
        datastore = PostgresDatastore(
            dbname=settings.dbname,
            host=settings.host,
            port=settings.port,
            user=settings.user,
            password=settings.password.get_secret_value(),
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            idle_in_transaction_session_timeout=IDLE_IN_TRANSACTION_SECONDS,
            pool_size=POOL_SIZE,
            max_overflow=MAX_OVERFLOW,
            lock_timeout=LOCK_TIMEOUT_SECONDS,
        )
        try:
            recorder = LogRecorder(datastore)
            if create_tables:
                recorder.create_table()
            log_id = _log_id(datastore, name_it=create_tables)
            _check_sequence(datastore)
            return cls(datastore, recorder, log_id, _predecessors(datastore))
        except (InterfaceError, OperationalError) as error:
            datastore.close()
            raise LogUnavailable(
                f"PostgreSQL at {settings.host}:{settings.port} does not answer as {settings.user}: {error}"
            ) from error
        except BaseException:
            datastore.close()
            raise

    def close(self) -> None:
        self._datastore.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- writing --------------------------------------------------------------------------------

    def append(self, appends: Sequence[Append], *, head: int | None = None) -> list[tuple[int, ...]]:
        """Store everything in one transaction; returns the positions of each append's events.

        `head` is where commands stand when nobody makes an event; by default at the log's last one.

        Raises:
            VersionConflict: a stream moved on since it was read.
            CommandRepeated: one of the commands is in the command table already.
            EventNotCanonical: an event cannot be stored exactly, or is too large.
            LogUnavailable: no answer after several tries.
            Refused: a side row refused.
        """
        stored = [event for append in appends for event in append.stored]
        entries = [Entry(len(append.events), append.command, append.rows) for append in appends]
        try:
            positions = list(self._recorder.insert_events(stored, entries=entries, head=head))
        except IntegrityError as error:
            positions = self._positions_if_stored(stored)
            if not positions:
                raise _conflict(error) from error
        except (InterfaceError, OperationalError) as error:
            raise _unwritable(error) from error
        shares: list[tuple[int, ...]] = []
        for append in appends:
            shares.append(tuple(positions[: len(append.events)]))
            positions = positions[len(append.events) :]
        return shares

    def _positions_if_stored(self, stored: Sequence[StoredLoggedEvent]) -> list[int]:
        """Tells a real conflict from our own commit whose reply was lost: that one clashes with itself.

        By the bytes, because an id may derive from the command's key: somebody else may have carried the
        same command out before, and decided differently.
        """
        states = {event.metadata.event_id: event.state for event in stored}
        found = self._read(lambda cursor: reader.positions_of(cursor, states))
        return [found[event_id] for event_id in states] if len(found) == len(states) else []

    def _read(self, query: Callable[[Cursor[DictRow]], T]) -> T:
        """Run a query; a connection that died since its last use is found out here and replaced."""
        deadline = time.monotonic() + READ_PATIENCE_SECONDS
        while True:
            try:
                with self._datastore.cursor() as cursor:
                    return query(cursor)
            except (InterfaceError, OperationalError) as error:
                if time.monotonic() > deadline:
                    raise LogUnavailable(f"the event log cannot be read: {error}") from error
                time.sleep(READ_PAUSE_SECONDS)

    # ---- reading --------------------------------------------------------------------------------

    def foreign(self, log_id: str | None) -> Literal["log_restored", "log_changed"] | None:
        """Why positions of that log mean nothing here; None when they do, or no log is named."""
        if log_id in (None, self.log_id):
            return None
        return "log_restored" if log_id in self.predecessors else "log_changed"

    def head(self) -> int:
        """Position of the last event; 0 when there is none."""
        return self._read(reader.head)

    def read_stream(self, stream_id: str, after_version: int = 0, limit: int | None = None) -> list[Recorded]:
        """The stream's events after a version, in order; none for a stream that does not exist."""
        raws = self._read(lambda cursor: reader.stream(cursor, stream_id, after_version, limit))
        return [raw.recorded() for raw in raws]

    def read_all(
        self,
        after: int,
        limit: int,
        types: Sequence[str] | None = None,
        organization_id: str | None = None,
        stream_id: str | None = None,
    ) -> list[RawEvent]:
        """At most `limit` events with a position greater than `after`, in order."""
        return self._read(
            lambda cursor: reader.page(
                cursor, after, limit, types=types, organization_id=organization_id, stream_id=stream_id
            )
        )

    def look_up(self, keys: Sequence[tuple[str, str]], streams: Mapping[str, int], limit: int) -> LookedUp:
        """`find_commands`, and at most `limit` of the events that streams hold after versions of theirs."""
        if not keys and not streams:
            return LookedUp({}, {}, frozenset())
        return self._read(lambda cursor: reader.look_up(cursor, keys, streams, limit))

    def find_commands(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], StoredCommand]:
        """Those of the (principal, key) pairs that were carried out."""
        return self._read(lambda cursor: reader.commands(cursor, keys)) if keys else {}

    def find_command(self, principal: str, key: str) -> StoredCommand | None:
        return self.find_commands([(principal, key)]).get((principal, key))

    def events_of(self, command: StoredCommand) -> tuple[Recorded, ...]:
        """The events that a command made, in order."""
        if command.event_count == 0:
            return ()
        raws = self.read_all(command.first_position - 1, command.event_count)
        return tuple(raw.recorded() for raw in raws)


def _log_id(datastore: PostgresDatastore, *, name_it: bool) -> str:
    with datastore.transaction(commit=True) as cursor:
        if name_it:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_ID,))
            cursor.execute(NAME_LOG, (f"log_{uuid7().hex}",))
        cursor.execute("SELECT to_regclass('kinora_log') IS NOT NULL AS present")
        row = cursor.fetchone()
        if row is not None and row["present"]:
            row = cursor.execute("SELECT log_id FROM kinora_log").fetchone()
            if row is not None:
                return str(row["log_id"])
    raise LogMismatch("the database holds no Kinora log; open it once with create_tables=True")


def _check_sequence(datastore: PostgresDatastore) -> None:
    """A session that drew positions ahead would hand out old ones later, behind readers' backs."""
    with datastore.cursor() as cursor:
        row = cursor.execute(
            "SELECT seqcache = 1 AND seqincrement = 1 AND NOT seqcycle AS one_by_one FROM pg_sequence"
            " WHERE seqrelid = pg_get_serial_sequence('kinora_events', 'notification_id')::regclass"
        ).fetchone()
    if row is None or not row["one_by_one"]:
        raise LogMismatch(
            "the sequence of kinora_events.notification_id was changed, and positions have to be drawn one by"
            " one: ALTER SEQUENCE kinora_events_notification_id_seq INCREMENT 1 CACHE 1 NO CYCLE"
        )


def _predecessors(datastore: PostgresDatastore) -> frozenset[str]:
    with datastore.cursor() as cursor:
        cursor.execute("SELECT log_id FROM kinora_log_predecessors")
        return frozenset(str(row["log_id"]) for row in cursor.fetchall())


def _unwritable(error: Exception) -> LogUnavailable:
    if isinstance(error.__cause__, pg.DiskFull):
        return LogFull(
            "PostgreSQL's disk is full, so nothing was stored; free space there and repeat the request with"
            " the same Idempotency-Key"
        )
    return LogUnavailable(f"the event log cannot be written: {error}")


def _conflict(error: IntegrityError) -> Exception:
    """The library wraps psycopg's error, which alone knows which constraint was hit."""
    cause = error.__cause__
    constraint = cause.diag.constraint_name if isinstance(cause, pg.Error) else None
    if constraint == "kinora_events_pkey":
        return VersionConflict("a stream moved on since it was read; load it and decide again")
    if constraint in ("kinora_commands_pkey", "kinora_events_event_id_idx"):
        return CommandRepeated("this command was carried out before; look its outcome up")
    return error
