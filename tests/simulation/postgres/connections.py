"""The client's side: what psycopg and its pools offer our code, over a network that is slow and fails."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from eventsourcing.postgres import PostgresDatastore
from psycopg import sql
from psycopg.pq import ExecStatus
from psycopg.rows import dict_row, tuple_row

from command_api.eventlog.arrays import Array
from tests.simulation.postgres.engine import Server, Session
from tests.simulation.postgres.statements import Result, execute
from tests.simulation.scheduler import (
    NOWHERE,
    PROCESS,
    Ended,
    Process,
    SimulatedLoop,
    Strand,
    check_alive,
    current_strand,
)

LOST = "server closed the connection unexpectedly"


class Network:
    """Between all processes and the database."""

    def __init__(self, loop: SimulatedLoop, server: Server) -> None:
        self.loop = loop
        self.server = server
        self.wires: list[Wire] = []
        self.slow_until = 0.0
        self.swallow_commit: Callable[[Process | None], bool] = lambda _process: False
        """Whether the reply to this process's COMMIT, which is about to be carried out, is lost."""

    def travel(self) -> float:
        """Seconds that a message is under way."""
        seconds = self.loop.random.expovariate(1 / 0.0004)
        if self.loop.random.random() < 0.01:
            seconds += self.loop.random.random() * 0.05
        if self.loop.time() < self.slow_until:
            seconds += self.loop.random.random() * 0.2
        return seconds

    def cut(self, wire: "Wire", *, request_arrives: bool, message: str = LOST) -> None:
        wire.cut(request_arrives=request_arrives, message=message)

    def stop_server(self) -> int:
        """The server crashes; how many unflushed commits are lost with it."""
        for wire in list(self.wires):
            wire.cut(
                request_arrives=False, message="terminating connection due to unexpected postmaster exit"
            )
        return self.server.crash()

    def start_server(self) -> None:
        self.server.up = True


Operation = Callable[[Session], Any]


class Pending:
    """A request on its way, being carried out, or on its way back."""

    def __init__(self, wire: "Wire", operation: Operation, deliver: Callable[[Any], None]) -> None:
        self.wire = wire
        self.operation = operation
        self.deliver = deliver
        self.unheard = False
        """Nobody waits for the answer any more."""
        self.dropped = False
        """It never reaches the server."""
        self.strand: Strand | None = None


class Wire:
    """One connection. What is sent over it arrives in order, or not at all."""

    def __init__(self, network: Network, *, synchronous_commit: bool, keepalive: float | None) -> None:
        self.network = network
        self.loop = network.loop
        self.process = PROCESS.get()
        self.session = Session(network.server, synchronous_commit=synchronous_commit)
        self.session.notify = self._announce
        self.broken: str | None = None
        self.silent = False
        """Half open: nothing gets through any more, and nobody was told."""
        self.keepalive = keepalive
        self.pending: Pending | None = None
        self.notes: deque[psycopg.Notify] = deque()
        self.heard = asyncio.Event()
        self._waiting: deque[Pending] = deque()
        self._last_arrival = 0.0
        network.wires.append(self)
        if self.process is not None:
            self.process.on_death.append(self._on_death)

    @property
    def listening(self) -> bool:
        return bool(self.session.channels)

    # ---- requests -------------------------------------------------------------------------------

    def send(self, operation: Operation, deliver: Callable[[Any], None]) -> Pending:
        """Ask the server; `deliver` gets the answer, or the error as an object."""
        check_alive()
        if self.loop.over:
            raise Ended
        pending = Pending(self, operation, deliver)
        if self.broken is not None:
            raise psycopg.OperationalError(self.broken)
        self.pending = pending
        if not self.silent:
            self.loop.call_later(self.network.travel(), self._arrive, pending, context=NOWHERE)
        return pending

    def call(self, operation: Operation) -> Any:
        """Ask and wait, on a strand."""
        strand = current_strand()
        answers: list[Any] = []
        wake = strand.waker()

        def deliver(answer: Any) -> None:
            answers.append(answer)
            wake(True)

        self.send(operation, deliver)
        strand.block()
        return _opened(answers[0])

    async def ask(self, operation: Operation) -> Any:
        """Ask and wait, on the event loop. A cancelled wait takes the statement back, as psycopg does."""
        if self.loop.over or (self.process is not None and not self.process.alive):
            raise asyncio.CancelledError
        answer: asyncio.Future[Any] = self.loop.create_future()

        def deliver(value: Any) -> None:
            if not answer.done():
                answer.set_result(value)

        pending = self.send(operation, deliver)
        try:
            return _opened(await answer)
        except asyncio.CancelledError:
            if not answer.done():
                self._take_back(pending)
            raise

    def _take_back(self, pending: Pending) -> None:
        pending.unheard = True
        if self.silent:
            self.cut(request_arrives=False, message="the connection is lost")
        elif pending.strand is None:
            pending.dropped = True
        elif pending.strand.blocked:
            pending.strand.kill(psycopg.errors.QueryCanceled("canceling statement due to user request"))

    # ---- the server's end -----------------------------------------------------------------------

    def _arrive(self, pending: Pending) -> None:
        if pending.dropped or not self.session.alive:
            return
        self._waiting.append(pending)
        if len(self._waiting) == 1:
            self._next()

    def _next(self) -> None:
        pending = self._waiting[0]
        self.loop.strand_now(lambda: self._serve(pending))

    def _serve(self, pending: Pending) -> None:
        answer: Any
        pending.strand = current_strand()
        try:
            answer = pending.operation(self.session)
        except (psycopg.Error, asyncio.CancelledError) as error:
            answer = error
        except Ended:
            return
        finally:
            self._waiting.popleft()
            if self._waiting:
                self.loop.call_soon(self._next, context=NOWHERE)
        wrote, self.session.wrote = self.session.wrote, False
        if wrote and self.network.swallow_commit(self.process):
            self.loop.note(f"postgres: the reply to a COMMIT of {_name(self.process)} is lost")
            self.cut(request_arrives=True)
            return
        if self.session.alive and not pending.unheard:
            self.loop.call_later(self.network.travel(), self._reply, pending, answer, context=NOWHERE)

    def _reply(self, pending: Pending, answer: Any) -> None:
        if self.pending is pending:
            self.pending = None
            pending.deliver(answer)

    # ---- notifications --------------------------------------------------------------------------

    def _announce(self, channel: str, payload: str) -> None:
        if not self.silent:
            note = psycopg.Notify(channel, payload, 1)
            self.loop.call_later(self.network.travel(), self._hear, note, context=NOWHERE)

    def _hear(self, note: psycopg.Notify) -> None:
        if self.broken is None and not self.silent:
            self.notes.append(note)
            self.heard.set()

    # ---- ends -----------------------------------------------------------------------------------

    def cut(self, *, request_arrives: bool, message: str = LOST) -> None:
        """The connection breaks. What the server is doing is finished only if `request_arrives`."""
        if self.broken is not None:
            return
        self.broken = message
        pending, self.pending = self.pending, None
        if pending is not None:
            if not request_arrives:
                pending.dropped = True
                if pending.strand is not None and not pending.strand.dead:
                    pending.strand.kill(Ended("session"))
            pending.deliver(psycopg.OperationalError(message))
        self.heard.set()
        if request_arrives and pending is not None:
            self.loop.strand(self._finish, NOWHERE)
        else:
            self._end()

    def _finish(self) -> None:
        """What arrived is carried out; then the server notices that nobody is there."""
        current_strand().block(0.005)
        while self._waiting:
            current_strand().block(0.005)
        self._end()

    def _end(self) -> None:
        if self in self.network.wires:
            self.network.wires.remove(self)
        self.session.end()

    def _on_death(self) -> None:
        self.cut(request_arrives=self.loop.random.random() < 0.5)

    def go_silent(self) -> None:
        """The network swallows everything from now on; only keepalives, where there are any, tell."""
        self.silent = True
        self.loop.call_later(20.0, self.session.end, context=NOWHERE)
        if self.keepalive is not None:
            self.loop.call_later(
                self.keepalive, lambda: self.cut(request_arrives=False, message="timeout"), context=NOWHERE
            )

    def close(self) -> None:
        if self.broken is None:
            self.broken = "the connection is closed"
            self.heard.set()
            self._end()


def _opened(answer: Any) -> Any:
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _name(process: Process | None) -> str:
    return process.name if process is not None else "nobody"


# ---- what a statement is on the wire --------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    text: str
    params: Any


def _values(params: Any) -> Any:
    if isinstance(params, Array):
        return list(params.values)
    if isinstance(params, Sequence) and not isinstance(params, str):
        return [_values(one) if isinstance(one, Array) else one for one in params]
    return params


def _text(query: Any) -> str:
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode()
    assert isinstance(query, sql.Composable)
    return query.as_string(None)


def _run(steps: Sequence["Statement | str"], *, autocommit: bool) -> Operation:
    """Statements and words such as BEGIN, as the server carries them out; a failure skips the rest."""

    def operation(session: Session) -> list[Result]:
        results: list[Result] = []
        implicit = False
        try:
            for step in steps:
                if isinstance(step, str):
                    _control(session, step)
                    continue
                implicit = implicit or not session.in_transaction
                session.begin()
                assert session.transaction is not None
                results.append(execute(session.transaction, step.text, step.params))
        except BaseException:
            if implicit and autocommit:
                session.rollback()
            elif session.transaction is not None:
                session.transaction.abort()
            raise
        if implicit and autocommit:
            session.commit()
        return results

    return operation


def _control(session: Session, word: str) -> None:
    match word:
        case "BEGIN":
            session.begin()
        case "COMMIT":
            session.commit()
        case "ROLLBACK":
            session.rollback()
        case _ if session.transaction is None:
            pass  # the session is gone
        case "SAVEPOINT":
            session.transaction.savepoint()
        case "ROLLBACK TO":
            session.transaction.rollback_to_savepoint()
        case "RELEASE":
            if not session.transaction.failed:
                session.transaction.release_savepoint()


def _controls(words: Sequence[str]) -> Operation:
    def operation(session: Session) -> None:
        for word in words:
            _control(session, word)

    return operation


class _Shape:
    """As much of a libpq result as psycopg's row factories look at."""

    status = ExecStatus.TUPLES_OK

    def __init__(self, columns: tuple[str, ...]) -> None:
        self._names = [name.encode() for name in columns]
        self.nfields = len(columns)

    def fname(self, number: int) -> bytes:
        return self._names[number]


class _Answers:
    """The part of a cursor that holds what came back."""

    _encoding = "utf-8"

    def __init__(self, row_factory: Any) -> None:
        self._factory = row_factory
        self._rows: deque[Any] = deque()
        self.pgresult: _Shape | None = None
        self.rowcount = -1
        self.statusmessage: str | None = None
        self.description: tuple[str, ...] | None = None

    def take(self, result: Result) -> None:
        self.rowcount = result.count
        self.statusmessage = result.status
        self.description = result.columns
        self.pgresult = None if result.columns is None else _Shape(result.columns)
        make = self._factory(self)
        self._rows = deque(make(row) for row in result.rows) if result.columns is not None else deque()

    def _check(self) -> None:
        if self.description is None:
            raise psycopg.ProgrammingError("the last operation didn't produce records")

    def one(self) -> Any:
        self._check()
        return self._rows.popleft() if self._rows else None

    def every(self) -> list[Any]:
        self._check()
        rows = list(self._rows)
        self._rows.clear()
        return rows


Queued = str | tuple[Statement, _Answers]


def _steps(prelude: Sequence[str], batch: Sequence[Queued]) -> tuple[list[Statement | str], list[_Answers]]:
    steps: list[Statement | str] = [*prelude]
    takers: list[_Answers] = []
    for each in batch:
        if isinstance(each, str):
            steps.append(each)
        else:
            steps.append(each[0])
            takers.append(each[1])
    return steps, takers


class _Blocks:
    """Nested transaction blocks of one connection, as psycopg keeps them."""

    def __init__(self) -> None:
        self.depth = 0
        self.prelude: list[str] = []
        """Words that travel with the next statement."""
        self.implicit = False
        """A transaction that began by itself, without autocommit."""

    def enter(self) -> bool:
        outer = self.depth == 0 and not self.implicit
        self.prelude.append("BEGIN" if outer else "SAVEPOINT")
        self.depth += 1
        return outer

    def leave(self, *, outer: bool, commit: bool) -> list[str]:
        """The words to send; none when nothing of the block was ever sent."""
        self.depth -= 1
        opening = "BEGIN" if outer else "SAVEPOINT"
        if self.prelude and self.prelude[-1] == opening:
            self.prelude.pop()
            return []
        if commit and not outer:
            self.prelude.append("RELEASE")  # it matters to nobody before the next statement
            return []
        words = ["COMMIT" if commit else "ROLLBACK" if outer else "ROLLBACK TO"]
        words, self.prelude = [*self.prelude, *words], []
        return words

    def take(self) -> list[str]:
        words, self.prelude = self.prelude, []
        return words


# ---- synchronous ----------------------------------------------------------------------------------


class _Adapters:
    def register_dumper(self, *_: object) -> None: ...


class Cursor:
    """`psycopg.Cursor`."""

    adapters = _Adapters()

    def __init__(self, connection: "Connection", row_factory: Any) -> None:
        self.connection = connection
        self._answers = _Answers(row_factory)

    def execute(self, query: Any, params: Any = None, *, prepare: bool | None = None) -> "Cursor":
        self.connection._execute(Statement(_text(query), _values(params)), self._answers)
        return self

    def fetchone(self) -> Any:
        return self._answers.one()

    def fetchall(self) -> list[Any]:
        return self._answers.every()

    @property
    def rowcount(self) -> int:
        return self._answers.rowcount

    @property
    def statusmessage(self) -> str | None:
        return self._answers.statusmessage

    @property
    def description(self) -> Any:
        return self._answers.description

    def close(self) -> None: ...

    def __enter__(self) -> "Cursor":
        return self

    def __exit__(self, *_: object) -> None: ...


class Connection:
    """`psycopg.Connection` with autocommit, as the event log's pool sets it."""

    def __init__(self, network: Network) -> None:
        self.wire = Wire(network, synchronous_commit=True, keepalive=None)
        self._blocks = _Blocks()
        self._queued: list[Queued] | None = None
        self.autocommit = True

    @property
    def closed(self) -> bool:
        return self.wire.broken is not None

    def cursor(self, *, row_factory: Any = dict_row, binary: bool = False) -> Cursor:
        return Cursor(self, row_factory)

    def execute(self, query: Any, params: Any = None) -> Cursor:
        return self.cursor().execute(query, params)

    def _execute(self, statement: Statement, answers: _Answers) -> None:
        if self._queued is not None:
            self._queued += self._blocks.take()
            is_word = statement.text in ("BEGIN", "COMMIT")
            self._queued.append(statement.text if is_word else (statement, answers))
            return
        self._send([(statement, answers)])

    def _send(self, batch: list[Queued]) -> None:
        steps, takers = _steps(self._blocks.take(), batch)
        for result, answers in zip(self.wire.call(_run(steps, autocommit=True)), takers, strict=True):
            answers.take(result)

    @contextmanager
    def pipeline(self) -> Iterator[None]:
        """Statements are sent together, and answered together when the block ends."""
        self._queued = []
        try:
            yield
        finally:
            batch, self._queued = self._queued, None
        if batch:
            self._send(batch)

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[None]:
        outer = self._blocks.enter()
        try:
            yield
        except BaseException:
            self._leave(outer, commit=False)
            raise
        self._leave(outer, commit=not force_rollback)

    def _leave(self, outer: bool, *, commit: bool) -> None:
        words = self._blocks.leave(outer=outer, commit=commit)
        if self._queued is not None:
            self._queued += words
            return
        if not words:
            return
        if commit:
            self.wire.call(_controls(words))
        elif self.wire.broken is None:
            try:
                self.wire.call(_controls(words))
            except psycopg.Error:
                return  # psycopg lets the error that ended the block through, and so do we

    def rollback(self) -> None:
        self._blocks = _Blocks()
        if self.wire.broken is None and self.wire.session.in_transaction:
            self.wire.call(_controls(["ROLLBACK"]))

    def close(self) -> None:
        self.wire.close()


class Pool:
    """`psycopg_pool.ConnectionPool`: hands out what it has, and finds out late that it is dead."""

    def __init__(self, network: Network, timeout: float) -> None:
        self._network = network
        self._timeout = timeout
        self._idle: list[Connection] = []

    def open(self, wait: bool = False, timeout: float = 30.0) -> None: ...

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        connection = self._idle.pop() if self._idle else self._connect()
        try:
            yield connection
        finally:
            if not connection.closed:
                self._idle.append(connection)

    def _connect(self) -> Connection:
        strand = current_strand()
        began = self._network.loop.time()
        while True:
            check_alive()
            strand.block(self._network.travel())
            check_alive()
            if self._network.server.up:
                return Connection(self._network)
            if self._network.loop.time() - began > self._timeout:
                raise psycopg.OperationalError(f"couldn't get a connection after {self._timeout:.2f} sec")
            strand.block(0.5)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


def datastore_on(network: Network) -> type[PostgresDatastore]:
    """The library's datastore, with its own error translation, over the model."""

    class Datastore(PostgresDatastore):
        def __init__(self, *, connect_timeout: float = 5.0, lock_timeout: int = 0, **_: Any) -> None:
            self.pre_ping = False
            self.pool_open_timeout = None
            self.single_row_tracking = True
            self.lock_timeout = lock_timeout
            self.schema = "public"
            self.originator_id_type = "uuid"
            self.enable_db_functions = False
            self.db_type_names = set()
            self.psycopg_type_adapters = {}
            self.psycopg_python_types = {}
            self.pool = Pool(network, connect_timeout)  # type: ignore[assignment]

        def register_type_adapters(self) -> None: ...

    return Datastore


# ---- asynchronous ---------------------------------------------------------------------------------


class AsyncCursor:
    """`psycopg.AsyncCursor`."""

    def __init__(self, connection: "AsyncConnection", row_factory: Any) -> None:
        self.connection = connection
        self._answers = _Answers(row_factory)

    async def execute(self, query: Any, params: Any = None, *, prepare: bool | None = None) -> "AsyncCursor":
        await self.connection._execute(Statement(_text(query), _values(params)), self._answers)
        return self

    async def fetchone(self) -> Any:
        return self._answers.one()

    async def fetchall(self) -> list[Any]:
        return self._answers.every()

    @property
    def rowcount(self) -> int:
        return self._answers.rowcount

    @property
    def description(self) -> Any:
        return self._answers.description

    async def __aenter__(self) -> "AsyncCursor":
        return self

    async def __aexit__(self, *_: object) -> None: ...


class AsyncConnection:
    """`psycopg.AsyncConnection`."""

    def __init__(self, wire: Wire, *, autocommit: bool, row_factory: Any) -> None:
        self.wire = wire
        self.autocommit = autocommit
        self.row_factory = row_factory
        self._blocks = _Blocks()
        self._queued: list[Queued] | None = None
        self._lock = asyncio.Lock()

    @property
    def closed(self) -> bool:
        return self.wire.broken is not None

    @property
    def broken(self) -> bool:
        return self.closed

    def cursor(self, *, row_factory: Any = None, binary: bool = False) -> AsyncCursor:
        return AsyncCursor(self, row_factory or self.row_factory)

    async def execute(self, query: Any, params: Any = None, *, prepare: bool | None = None) -> AsyncCursor:
        return await self.cursor().execute(query, params)

    async def _execute(self, statement: Statement, answers: _Answers) -> None:
        if self._queued is not None:
            self._queued += self._blocks.take()
            self._queued.append((statement, answers))
            return
        await self._send([(statement, answers)])

    async def _send(self, batch: list[Queued]) -> None:
        async with self._lock:
            if not self.autocommit and self._blocks.depth == 0 and not self._blocks.implicit:
                self._blocks.prelude.append("BEGIN")
                self._blocks.implicit = True
            steps, takers = _steps(self._blocks.take(), batch)
            results = await self.wire.ask(_run(steps, autocommit=self.autocommit))
        for result, answers in zip(results, takers, strict=True):
            answers.take(result)

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[None]:
        self._queued = []
        try:
            yield
        finally:
            batch, self._queued = self._queued, None
        if batch:
            await self._send(batch)

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[None]:
        outer = self._blocks.enter()
        try:
            yield
        except BaseException:
            await self._leave(outer, commit=False)
            raise
        await self._leave(outer, commit=not force_rollback)

    async def _leave(self, outer: bool, *, commit: bool) -> None:
        words = self._blocks.leave(outer=outer, commit=commit)
        if self._queued is not None:
            self._queued += words
            return
        if not words:
            return
        async with self._lock:
            if commit:
                await self.wire.ask(_controls(words))
            elif self.wire.broken is None:
                try:
                    await self.wire.ask(_controls(words))
                except psycopg.Error:
                    return

    async def commit(self) -> None:
        await self._end("COMMIT")

    async def rollback(self) -> None:
        await self._end("ROLLBACK")

    async def _end(self, word: str) -> None:
        if self._blocks.implicit:
            self._blocks.implicit = False
            async with self._lock:
                await self.wire.ask(_controls([*self._blocks.take(), word]))

    async def notifies(
        self, *, timeout: float | None = None, stop_after: int | None = None
    ) -> AsyncIterator[psycopg.Notify]:
        """What was announced; ends with the time, or with what came together once `stop_after` is reached."""
        loop = self.wire.loop
        deadline = None if timeout is None else loop.time() + timeout
        given = 0
        while True:
            while self.wire.notes:
                yield self.wire.notes.popleft()
                given += 1
            if stop_after is not None and given >= stop_after:
                return
            if self.wire.broken is not None:
                raise psycopg.OperationalError(self.wire.broken)
            self.wire.heard.clear()
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    await self.wire.heard.wait()
            except TimeoutError:
                return

    async def close(self) -> None:
        self.wire.close()

    async def __aenter__(self) -> "AsyncConnection":
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.wire.broken is not None:
            return
        try:
            if kind is None:
                await self.commit()
            else:
                await self.rollback()
        finally:
            self.wire.close()


def connect_on(network: Network) -> Callable[..., Any]:
    """`AsyncConnection.connect`."""

    async def connect(
        _conninfo: str = "",
        *,
        autocommit: bool = False,
        row_factory: Any = tuple_row,
        options: str = "",
        connect_timeout: int = 5,
        keepalives_idle: int | None = None,
        keepalives_interval: int = 75,
        keepalives_count: int = 9,
        application_name: str = "",
        prepare_threshold: int | None = 5,
        **_: Any,
    ) -> AsyncConnection:
        process = PROCESS.get()
        await asyncio.sleep(network.travel())
        if network.loop.over or (process is not None and not process.alive):
            raise asyncio.CancelledError
        if not network.server.up:
            raise psycopg.OperationalError("connection refused")
        keepalive = None
        if keepalives_idle is not None:
            keepalive = float(keepalives_idle + keepalives_interval * keepalives_count)
        wire = Wire(network, synchronous_commit="synchronous_commit=off" not in options, keepalive=keepalive)
        return AsyncConnection(wire, autocommit=autocommit, row_factory=row_factory)

    return connect


class AsyncPool:
    """`psycopg_pool.AsyncConnectionPool` with autocommit connections, as the API has it."""

    def __init__(self, network: Network) -> None:
        self._connect = connect_on(network)
        self._idle: list[AsyncConnection] = []

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        connection = self._idle.pop() if self._idle else await self._connect(autocommit=True)
        try:
            yield connection
        finally:
            if not connection.closed:
                self._idle.append(connection)


__all__ = ["AsyncConnection", "AsyncPool", "Connection", "Network", "Wire", "connect_on", "datastore_on"]
