"""Commands per second of 64 concurrent callers, ours and the stock recorder's in turn, and events imported.

Ours is everything that an agent's report passes: the bus, the job's decision on the state that the log has
now, the canonical event, and in one transaction event and command row. The stock recorder is the library's
`PostgresApplicationRecorder` as it comes, in a database of the same server: 64 threads with a connection
each, one event per call with a state of the same size and no decision, in the same global order (its table
lock). What is handed in is finished on both sides: reports are made before a round begins, as agents make
theirs elsewhere. Import is `import_rows` on events that are in memory already.
"""

import asyncio
import itertools
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import psycopg
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg import sql
from psycopg.rows import dict_row

from benchmarks.installation import console, scratch
from benchmarks.report import Result, percentile
from benchmarks.seeding import BEGINNING, Story, fill
from command_api.domain.aggregates import AGGREGATES
from command_api.domain.job_phases import Running
from command_api.eventlog.bulk import EventRow, import_rows
from command_api.eventlog.log import EventLog
from command_api.handlers.base import Context, Idempotency
from command_api.handlers.bus import CommandBus
from command_api.handlers.registry import HANDLERS
from kinora import collector
from kinora.local.servers import EmbeddedServers
from schemas import work
from schemas.commands.job import ReportAttempt
from schemas.events.job import ProgressPoint
from schemas.ids import Prefix
from schemas.settings import PostgresSettings

CALLERS = 64
ROUNDS = 5
ROUND_SECONDS = 5.0
IMPORTED = 200_000
"""Events of one import."""
REPORTS_PER_SECOND = 200
"""So many of each caller are prepared: more than it can hand in."""
TIMES_STOCK = 6.0
P99_MILLISECONDS = 20.0
IMPORT_PER_SECOND = 100_000.0


@dataclass(slots=True)
class Round:
    """What one side did in one round."""

    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    """Of each command, in seconds."""

    @property
    def per_second(self) -> float:
        return len(self.waits) / self.seconds


def measure(*, quick: bool = False) -> list[Result]:
    """Start a database server, and let both sides take turns on it."""
    with scratch() as folder:
        return asyncio.run(_measure(EmbeddedServers(folder / "data", only=["postgres"]), quick=quick))


async def _measure(server: EmbeddedServers, *, quick: bool) -> list[Result]:
    rounds, seconds, events = (2, 1.0, 20_000) if quick else (ROUNDS, ROUND_SECONDS, IMPORTED)
    async with server as servers:
        ours = new_database(servers, "ours")
        story = await asyncio.to_thread(fill, ours, 5000, Story(agents=CALLERS // 2))
        mine: list[Round] = []
        theirs: list[Round] = []
        with EventLog.open(ours) as log:
            agents = list(itertools.islice(callers(log, story), CALLERS))
            async with CommandBus(log, HANDLERS) as bus:
                await _ours(bus, agents, 1.0)
                with StockSide(new_database(servers, "stock")) as stock:
                    await asyncio.to_thread(stock.run, 1.0)
                    for number in range(1, rounds + 1):
                        mine.append(await _ours(bus, agents, seconds))
                        theirs.append(await asyncio.to_thread(stock.run, seconds))
                        console.print(
                            f"round {number} of {rounds}: {mine[-1].per_second:,.0f} commands/s,"
                            f" stock recorder {theirs[-1].per_second:,.0f}"
                        )
        imports = [
            await asyncio.to_thread(_import, new_database(servers, f"import_{number}"), events)
            for number in range(3)
        ]
    return _results(mine, theirs, imports)


def _results(mine: Sequence[Round], theirs: Sequence[Round], imports: Sequence[float]) -> list[Result]:
    waits, stock_waits = ([wait for one in side for wait in one.waits] for side in (mine, theirs))
    per_second = statistics.median(one.per_second for one in mine)
    stock_per_second = statistics.median(one.per_second for one in theirs)
    times = statistics.median(a.per_second / b.per_second for a, b in zip(mine, theirs, strict=True))
    return [
        Result(f"commands, {CALLERS} callers", per_second, "per s"),
        Result(f"stock recorder, {CALLERS} threads", stock_per_second, "per s"),
        Result("times the stock recorder", times, "×", TIMES_STOCK, at_least=True),
        Result("command p50", percentile(waits, 0.5) * 1000, "ms"),
        Result("command p99", percentile(waits, 0.99) * 1000, "ms", P99_MILLISECONDS),
        Result("stock recorder p99", percentile(stock_waits, 0.99) * 1000, "ms"),
        Result("import", statistics.median(imports), "events/s", IMPORT_PER_SECOND, at_least=True),
    ]


def new_database(servers: EmbeddedServers, name: str) -> PostgresSettings:
    """An empty one beside the service's own."""
    with psycopg.connect(servers.postgres_superuser.conninfo(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(name), sql.Identifier(servers.postgres.user)
            )
        )
    return servers.postgres.model_copy(update={"dbname": name})


# ---- ours -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Caller:
    """An agent that reports the progress of the job it runs."""

    job_id: str
    agent_id: str
    organization_id: str
    workspace_id: str
    step: int = 1_000_000
    """Beyond what was reported before."""
    ready: deque[tuple[ReportAttempt, Context]] = field(default_factory=deque)
    """Made before the round begins: agents make their reports in processes of their own."""

    def prepare(self, reports: int) -> None:
        self.ready.extend(self._make() for _ in range(reports - len(self.ready)))

    def next(self) -> tuple[ReportAttempt, Context]:
        return self.ready.popleft() if self.ready else self._make()

    def _make(self) -> tuple[ReportAttempt, Context]:
        self.step += 2
        points = tuple(
            ProgressPoint(
                step=step, loss=0.2 + 1 / (step % 1000 + 1), learning_rate=2e-4, grad_norm=0.73, tokens=384,
                tokens_per_second=191.25, step_seconds=2.0078,
            )
            for step in (self.step - 1, self.step)
        )  # fmt: skip
        body = work.Progressed(
            step=self.step, total_steps=10_000_000, epoch=self.step / 1000, points=points, eta_seconds=93.5
        )
        report = work.Report(
            item_id=self.job_id, attempt=1, sequence=self.step, occurred_at=BEGINNING, body=body
        )
        key = f"{self.job_id}-{self.step}"
        context = Context(
            actor=self.agent_id,
            organization_id=self.organization_id,
            workspace_id=self.workspace_id,
            request_id=key,
            correlation_id=self.job_id,
            causation_id=key,
            idempotency=Idempotency(self.agent_id, key, bytes(32)),
        )
        return ReportAttempt(agent_id=self.agent_id, report=report), context


def callers(log: EventLog, story: Story) -> Iterator[Caller]:
    evolve, initial = AGGREGATES[Prefix.JOB].evolve, AGGREGATES[Prefix.JOB].initial
    for job_id, agent_id in story.running.items():
        state, events = initial, log.read_stream(job_id)
        for recorded in events:
            state = evolve(state, recorded.event)
        if isinstance(state, Running):
            place = events[0].metadata
            yield Caller(job_id, agent_id, str(place.organization_id), str(place.workspace_id))


async def _ours(bus: CommandBus, callers: Sequence[Caller], seconds: float) -> Round:
    for caller in callers:
        caller.prepare(round(seconds * REPORTS_PER_SECOND))
    collector.settle()  # as every role does once it is ready
    done = Round()
    begun = time.perf_counter()

    async def call(caller: Caller) -> None:
        while (sent := time.perf_counter()) < begun + seconds:
            outcome = await bus.execute(*caller.next())
            done.waits.append(time.perf_counter() - sent)
            if len(outcome.events) != 1 or outcome.replayed:
                raise AssertionError(f"{caller.job_id} got {outcome} for its report")

    async with asyncio.TaskGroup() as together:
        for caller in callers:
            together.create_task(call(caller))
    done.seconds = time.perf_counter() - begun
    return done


# ---- the stock recorder -----------------------------------------------------------------------------


class StockSide:
    """The library's recorder as it comes, with a connection for each of its threads."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._datastore = PostgresDatastore(
            dbname=settings.dbname,
            host=settings.host,
            port=settings.port,
            user=settings.user,
            password=settings.password.get_secret_value(),
            pool_size=CALLERS,
            max_overflow=0,
            max_waiting=0,
        )
        self._recorder = PostgresApplicationRecorder(self._datastore)
        self._recorder.create_table()
        self._datastore.pool.wait()
        self._versions: dict[UUID, Iterator[int]] = {uuid4(): itertools.count(1) for _ in range(CALLERS)}

    def __enter__(self) -> "StockSide":
        return self

    def __exit__(self, *_: object) -> None:
        self._datastore.close()

    def run(self, seconds: float) -> Round:
        waits: list[list[float]] = [[] for _ in self._versions]
        begun = time.perf_counter()

        def call(stream: UUID, versions: Iterator[int], mine: list[float]) -> None:
            while (sent := time.perf_counter()) < begun + seconds:
                event = StoredEvent(stream, next(versions), "kinora.job.progressed", _STATE)
                self._recorder.insert_events([event])
                mine.append(time.perf_counter() - sent)

        with ThreadPoolExecutor(CALLERS) as threads:
            calls = [
                threads.submit(call, *stream, mine)
                for stream, mine in zip(self._versions.items(), waits, strict=True)
            ]
        for one in calls:
            one.result()
        return Round(time.perf_counter() - begun, [wait for mine in waits for wait in mine])


_STATE = bytes(900)
"""About as long as the event of a report."""


# ---- import -----------------------------------------------------------------------------------------


def _import(settings: PostgresSettings, events: int) -> float:
    """Events per second into an empty log, its commit included."""
    rows: list[EventRow] = list(Story().rows(events))
    with EventLog.open(settings):
        pass
    with psycopg.connect(settings.conninfo(), row_factory=dict_row) as connection:
        begun = time.perf_counter()
        with connection.transaction(), connection.cursor() as cursor:
            import_rows(cursor, rows)
        return events / (time.perf_counter() - begun)
