"""The server: rows, transactions, locks, sequences, notifications, and a disk that a crash may outrun.

READ COMMITTED, as all our code uses: a statement sees what is committed and what its own transaction wrote.
Who writes a row, or a unique key, holds a lock on it until the transaction ends; others wait. Positions come
from a sequence that no rollback turns back.
"""

from bisect import bisect_right, insort
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg
from psycopg import errors as pg
from psycopg.pq import DiagnosticField

from tests.simulation.scheduler import SimulatedLoop, current_strand

Row = dict[str, Any]
Mode = Literal["row", "exclusive"]
"""Lock modes of tables: ROW EXCLUSIVE of whoever writes rows, and EXCLUSIVE."""

DEADLOCK_SECONDS = 1.0
FLUSH_SECONDS = 0.6
"""How long a commit that did not wait for the disk may stay off it: thrice `wal_writer_delay`."""


def error(kind: type[psycopg.Error], message: str, constraint: str | None = None) -> psycopg.Error:
    """What the server says, with the fields that our code looks at."""
    if constraint is None:
        return kind(message)
    fields: dict[int, bytes | None] = dict.fromkeys((int(field) for field in DiagnosticField), None)
    fields[DiagnosticField.CONSTRAINT_NAME] = constraint.encode()
    fields[DiagnosticField.SQLSTATE] = (kind.sqlstate or "").encode()
    return kind(message, info=fields)  # type: ignore[arg-type]


class Table:
    """Committed rows by primary key, in the order of their keys' first commit."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: dict[Hashable, Row] = {}

    def put(self, key: Hashable, row: Row | None) -> None:
        if row is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = row


class EventsTable(Table):
    """With the indexes that make pages and streams quick to find."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.positions: list[int] = []
        self.by_position: dict[int, Row] = {}
        self.by_stream: dict[str, list[Row]] = defaultdict(list)
        self.by_event_id: dict[str, int] = {}

    def put(self, key: Hashable, row: Row | None) -> None:
        assert row is not None, "events are never deleted"
        super().put(key, row)
        insort(self.positions, row["notification_id"])
        self.by_position[row["notification_id"]] = row
        insort(self.by_stream[row["stream_id"]], row, key=lambda one: one["originator_version"])
        self.by_event_id[row["event_id"]] = row["notification_id"]

    def after(self, position: int) -> Iterator[Row]:
        for found in self.positions[bisect_right(self.positions, position) :]:
            yield self.by_position[found]


@dataclass
class Lock:
    holders: dict["Transaction", Mode] = field(default_factory=dict)
    waiting: deque[tuple["Transaction", Callable[[Any], None]]] = field(default_factory=deque)


class Transaction:
    """What one transaction wrote and holds."""

    def __init__(self, session: "Session") -> None:
        self.session = session
        self.writes: dict[str, dict[Hashable, Row | None]] = {}
        self.notes: dict[tuple[str, str], None] = {}
        """Notifications; a repeated one is sent once."""
        self.locks: list[Hashable] = []
        self.savepoints: list[
            tuple[dict[str, dict[Hashable, Row | None]], dict[tuple[str, str], None], int]
        ] = []
        """Writes, notifications and the number of locks at each."""
        self.failed = False
        self.waits_for: Hashable | None = None
        self.search_path = "public"

    # ---- rows -----------------------------------------------------------------------------------

    @property
    def server(self) -> "Server":
        return self.session.server

    def get(self, table: str, key: Hashable) -> Row | None:
        own = self.writes.get(table)
        if own is not None and key in own:
            return own[key]
        return self.server.table(table).rows.get(key)

    def all(self, table: str) -> list[Row]:
        rows = self.server.table(table).rows
        own = self.writes.get(table)
        if not own:
            return list(rows.values())
        merged = {**rows, **own}
        return [row for row in merged.values() if row is not None]

    def put(self, table: str, key: Hashable, row: Row | None) -> None:
        """Write a row whose lock is held."""
        self.writes.setdefault(table, {})[key] = row

    def lock_row(self, table: str, key: Hashable) -> None:
        self.lock(("table", table), "row")
        self.lock(("row", table, key))

    def events(self) -> EventsTable:
        table = self.server.table("kinora_events")
        assert isinstance(table, EventsTable)
        return table

    # ---- locks ----------------------------------------------------------------------------------

    def lock(self, name: Hashable, mode: Mode = "exclusive", *, wait: bool = True) -> bool:
        """Hold the lock until the transaction ends; waits for whoever holds it in a mode that conflicts.

        Raises:
            LockNotAvailable: `lock_timeout` is over.
            DeadlockDetected: they wait for one another.
        """
        server = self.server
        waited = 0.0
        while True:
            lock = server.locks.setdefault(name, Lock())  # looked up anew: it may have gone meanwhile
            if not any(
                holder is not self and "exclusive" in (held, mode) for holder, held in lock.holders.items()
            ):
                break
            if not wait:
                return False
            strand = current_strand()
            turn = (self, strand.waker())
            lock.waiting.append(turn)
            self.waits_for = name
            timeout = self.session.lock_timeout or None
            patience = DEADLOCK_SECONDS if timeout is None else min(DEADLOCK_SECONDS, timeout - waited)
            began = server.loop.time()
            try:
                strand.block(patience)
            finally:
                self.waits_for = None
                if turn in lock.waiting:
                    lock.waiting.remove(turn)
            waited += server.loop.time() - began
            if timeout is not None and waited >= timeout - 1e-9:
                raise error(pg.LockNotAvailable, "canceling statement due to lock timeout")
            if waited >= DEADLOCK_SECONDS and server.deadlocked(self, name):
                raise error(pg.DeadlockDetected, "deadlock detected")
        if self not in lock.holders:
            self.locks.append(name)
            lock.holders[self] = mode
        elif mode == "exclusive":
            lock.holders[self] = mode
        return True

    # ---- ends -----------------------------------------------------------------------------------

    def savepoint(self) -> None:
        writes = {name: copy(rows) for name, rows in self.writes.items()}
        self.savepoints.append((writes, dict(self.notes), len(self.locks)))

    def rollback_to_savepoint(self) -> None:
        self.writes, self.notes, locks = self.savepoints.pop()
        self._release(locks)
        self.failed = False

    def abort(self) -> None:
        """A statement failed: nothing more can be done, and what the block held is free at once."""
        self.failed = True
        self._release(self.savepoints[-1][2] if self.savepoints else 0)

    def release_savepoint(self) -> None:
        self.savepoints.pop()

    def end(self, *, commit: bool) -> None:
        server = self.server
        if commit:
            server.apply(self, durable=self.session.synchronous_commit)
        self._release(0)

    def _release(self, keep: int) -> None:
        for name in self.locks[keep:]:
            lock = self.server.locks[name]
            del lock.holders[self]
            for _, wake in lock.waiting:
                wake(True)
            if not lock.holders and not lock.waiting:
                del self.server.locks[name]
        del self.locks[keep:]


class Session:
    """One connection, as the server knows it."""

    def __init__(self, server: "Server", *, synchronous_commit: bool = True) -> None:
        self.server = server
        self.number = server.next_session()
        self.transaction: Transaction | None = None
        self.synchronous_commit = synchronous_commit
        self.lock_timeout = 0.0
        self.channels: set[str] = set()
        self.advisory: set[Hashable] = set()
        self.alive = True
        self.wrote = False
        """Whether a commit has stored anything since somebody looked."""
        self.notify: Callable[[str, str], None] = lambda _channel, _payload: None
        server.sessions[self.number] = self

    @property
    def in_transaction(self) -> bool:
        return self.transaction is not None

    def begin(self) -> None:
        if self.transaction is None:
            self.transaction = Transaction(self)

    def commit(self) -> None:
        if self.transaction is not None:
            done, self.transaction = self.transaction, None
            done.end(commit=not done.failed)

    def rollback(self) -> None:
        if self.transaction is not None:
            done, self.transaction = self.transaction, None
            done.end(commit=False)

    def end(self) -> None:
        """The connection is gone: what was not committed never was."""
        if not self.alive:
            return
        self.alive = False
        self.rollback()
        for name in self.advisory:
            self.server.advisory.pop(name, None)
        self.server.sessions.pop(self.number, None)

    def try_advisory(self, name: Hashable) -> bool:
        if self.server.advisory.setdefault(name, self) is not self:
            return False
        self.advisory.add(name)
        return True


class Server:
    """The database that all processes of a simulation share."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.tables: dict[str, Table] = {}
        self.schemas: set[str] = set()
        self.sequences: dict[str, int] = {}
        self.locks: dict[Hashable, Lock] = {}
        self.advisory: dict[Hashable, Session] = {}
        self.sessions: dict[int, Session] = {}
        self.up = True
        self.commits: list[dict[str, dict[Hashable, Row | None]]] = []
        """The write-ahead log since `base`."""
        self._flushed = 0
        self._flush_due: float | None = None
        self._numbers = 0

    def next_session(self) -> int:
        self._numbers += 1
        return self._numbers

    def table(self, name: str) -> Table:
        if name not in self.tables:
            self.tables[name] = EventsTable(name) if name == "kinora_events" else Table(name)
        return self.tables[name]

    def next_value(self, sequence: str) -> int:
        self.sequences[sequence] = self.sequences.get(sequence, 0) + 1
        return self.sequences[sequence]

    def now(self) -> float:
        return self.loop.time()

    # ---- commits --------------------------------------------------------------------------------

    def apply(self, done: Transaction, *, durable: bool) -> None:
        """Make a transaction's writes visible, and tell who listens."""
        if done.writes:
            self._flush_if_due()
            done.session.wrote = True
            self.commits.append(done.writes)
            self._write(done.writes)
            if durable:
                self._flushed = len(self.commits)
                self._flush_due = None
            elif self._flush_due is None:
                self._flush_due = self.now() + FLUSH_SECONDS
        for channel, payload in done.notes:
            for session in list(self.sessions.values()):
                if channel in session.channels:
                    session.notify(channel, payload)

    def _write(self, writes: dict[str, dict[Hashable, Row | None]]) -> None:
        for name, rows in writes.items():
            table = self.table(name)
            for key, row in rows.items():
                table.put(key, row)

    def _flush_if_due(self) -> None:
        if self._flush_due is not None and self.now() >= self._flush_due:
            self._flushed = len(self.commits)
            self._flush_due = None

    def crash(self) -> int:
        """Power off: returns how many commits that had not waited for the disk are lost."""
        self._flush_if_due()
        self.up = False
        for session in list(self.sessions.values()):
            session.end()
        loose = len(self.commits) - self._flushed
        lost = self.loop.random.randint(0, loose) if loose else 0
        if lost:
            del self.commits[len(self.commits) - lost :]
            self.tables = {}
            for writes in self.commits:
                self._write(writes)
        self._flushed = len(self.commits)
        self._flush_due = None
        for name in self.sequences:  # values are logged 32 at a time
            self.sequences[name] += self.loop.random.randint(0, 32)
        return lost

    # ---- deadlocks ------------------------------------------------------------------------------

    def deadlocked(self, waiter: Transaction, name: Hashable) -> bool:
        """Whether whoever holds `name` waits, through others, for `waiter`."""
        seen: set[int] = set()
        open_ = [holder for holder in self.locks[name].holders if holder is not waiter]
        while open_:
            holder = open_.pop()
            if holder is waiter:
                return True
            if id(holder) in seen or holder.waits_for is None:
                continue
            seen.add(id(holder))
            open_ += [other for other in self.locks[holder.waits_for].holders if other is not holder]
        return False


__all__ = ["EventsTable", "Row", "Server", "Session", "Transaction", "error"]
