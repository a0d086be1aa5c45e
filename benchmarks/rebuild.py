"""The job views folded anew from a long log, with readers at them, and the library's runner at the same.

Measured is what the projections process does when somebody asks for the rebuild of all four views at once:
one pass over the log in two processes, every event validated, indexes, the check of a second fold, the
comparison with the tables that served until then, and the swap. First nobody reads; then readers send the
queries of the API, one after the other, from before the rebuild until after the swap.

The stock side is `ProjectionRunner` with the views' own folds and statements, event by event, as it works.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import psycopg
from psycopg import AsyncConnection, sql
from psycopg_pool import AsyncConnectionPool

from benchmarks.installation import console, scratch
from benchmarks.report import Result, percentile
from benchmarks.seeding import Story, fill
from benchmarks.stock_projection import fold_by_stock_runner
from kinora.local.servers import EmbeddedServers
from projections.rebuild import rebuild_together
from projections.registry import view_named
from projections.views import activity, jobs, logs, loss_curve
from schemas.settings import PostgresSettings

VIEWS = tuple(view_named(name) for name in ("jobs", "loss_curve", "activity", "logs"))
EVENTS = 1_000_000
STOCK_EVENTS = 2000
READERS = 4
PER_SECOND = 50_000.0
TIMES_STOCK = 100.0


@dataclass(slots=True)
class Reads:
    """What the readers saw."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def measure(*, events: int | None = None, quick: bool = False) -> list[Result]:
    """Start a database server, fill its log, and rebuild; about three minutes."""
    count = events or (50_000 if quick else EVENTS)
    with scratch() as folder:
        return asyncio.run(_measure(EmbeddedServers(folder / "data", only=["postgres"]), count))


async def _measure(server: EmbeddedServers, count: int) -> list[Result]:
    async with server as servers:
        console.print(f"rebuild: filling a log with {count:,} events …")
        story = await asyncio.to_thread(fill, servers.postgres, count)
        conninfo = servers.postgres.conninfo()
        console.print("rebuild: the stock runner …")
        stock = await asyncio.to_thread(_stock, servers)
        console.print(f"rebuild: the stock runner folds {stock:,.0f} events/s; ours, nobody reading …")
        first = await _rebuild(conninfo)
        console.print(f"rebuild: {count / first:,.0f} events/s; again, under reads …")
        reads = Reads()
        second = await _under_reads(conninfo, story, reads)
    for failure in reads.failures[:5]:
        console.print(f"rebuild: a read failed: {failure}", markup=False)
    return [
        Result("job views, nobody reading", count / first, "events/s", PER_SECOND, at_least=True),
        Result("stock ProjectionRunner", stock, "events/s"),
        Result("times the stock runner", count / first / stock, "×", TIMES_STOCK, at_least=True),
        Result(f"job views, {READERS} readers", count / second, "events/s"),
        Result("reads meanwhile", len(reads.seconds), "reads"),
        Result("failed reads", len(reads.failures), "reads", 0),
        Result("read p99 meanwhile", percentile(reads.seconds, 0.99) * 1000, "ms"),
        Result("longest read", max(reads.seconds) * 1000, "ms"),
    ]


async def _rebuild(conninfo: str) -> float:
    """Seconds from the request to the last swap."""
    begun = time.perf_counter()
    for outcome in await rebuild_together(conninfo, VIEWS, {}, processes=2):
        if isinstance(outcome, Exception):
            raise outcome
        if outcome.checked is None or outcome.checked.streams == 0 or outcome.checked.differing:
            raise AssertionError(f"the rebuild of {outcome.view} was not checked: {outcome}")
    return time.perf_counter() - begun


# ---- readers ----------------------------------------------------------------------------------------


async def _under_reads(conninfo: str, story: Story, reads: Reads) -> float:
    over = asyncio.Event()
    async with AsyncConnectionPool(conninfo, min_size=READERS, max_size=READERS, open=False) as pool:
        await pool.wait()
        readers = [asyncio.create_task(_read(pool, story, reads, over)) for _ in range(READERS)]
        try:
            return await _rebuild(conninfo)
        finally:
            over.set()
            await asyncio.gather(*readers)


async def _read(
    pool: AsyncConnectionPool[AsyncConnection], story: Story, reads: Reads, over: asyncio.Event
) -> None:
    for name, query in _queries(story):
        if over.is_set():
            return
        begun = time.perf_counter()
        try:
            async with pool.connection() as connection:
                found = await query(connection)
        except psycopg.Error as error:
            reads.failures.append(f"{name}: {type(error).__name__}: {error}")
        else:
            reads.seconds.append(time.perf_counter() - begun)
            if not found:
                reads.failures.append(f"{name}: nothing was found")


Query = Callable[[AsyncConnection], Awaitable[object]]


def _queries(story: Story) -> Iterator[tuple[str, Query]]:
    """What a person looks at, for ever: a page of jobs, a job, its chart, its log's pieces, what happened."""
    ended = list(story.ended)
    for number in itertools.count():
        job_id, organization_id = ended[number % len(ended)]
        yield "page of jobs", partial(_page, organization_id)
        yield "activity", partial(_recent, organization_id)
        yield "a job", partial(_job, organization_id, job_id)
        yield "its chart", partial(_points, organization_id, job_id)
        yield "its log", partial(_segments, organization_id, job_id)


async def _page(organization_id: str, connection: AsyncConnection) -> object:
    return await jobs.page(connection, organization_id, limit=20)


async def _recent(organization_id: str, connection: AsyncConnection) -> object:
    return await activity.recent(connection, organization_id, limit=20)


async def _job(organization_id: str, job_id: str, connection: AsyncConnection) -> object:
    return await jobs.get(connection, organization_id, job_id)


async def _points(organization_id: str, job_id: str, connection: AsyncConnection) -> object:
    return (await loss_curve.curve(connection, organization_id, job_id, max_points=500)).points


async def _segments(organization_id: str, job_id: str, connection: AsyncConnection) -> object:
    return await logs.segments(connection, organization_id, job_id)


# ---- the stock runner -------------------------------------------------------------------------------


def _stock(servers: EmbeddedServers) -> float:
    """Events per second of the library's runner, on the first events of the same log."""
    with psycopg.connect(servers.postgres.conninfo()) as connection:
        cursor = connection.execute(
            """
            SELECT originator_id, originator_version, topic, state FROM kinora_events
             ORDER BY notification_id LIMIT %s
            """,
            [STOCK_EVENTS],
        )
        rows = cursor.fetchall()
    return fold_by_stock_runner(_database(servers, "stock"), rows, VIEWS)


def _database(servers: EmbeddedServers, name: str) -> PostgresSettings:
    """An empty one beside the service's own."""
    with psycopg.connect(servers.postgres_superuser.conninfo(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(name), sql.Identifier(servers.postgres.user)
            )
        )
    return servers.postgres.model_copy(update={"dbname": name})
