"""Whether commands and queries take longer in a long log: 10,000, 100,000 and 1,000,000 events.

Three databases of one server stand side by side, each with a log of that many events and one more job whose
stream alone has 10,000, with a command row for every event, and with the job views built. The rounds go
around them, so that whatever else the machine does touches all of them alike. A round's figure is a 95th
percentile, and a ratio is the median of its rounds.
"""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from psycopg_pool import AsyncConnectionPool

from benchmarks.append import callers, new_database
from benchmarks.installation import console, scratch
from benchmarks.report import Result, percentile
from benchmarks.seeding import Home, Story, fill
from command_api.eventlog.log import EventLog
from command_api.handlers.bus import CommandBus
from command_api.handlers.registry import HANDLERS
from kinora.local.servers import EmbeddedServers
from projections.reader import LogReader
from projections.rebuild import rebuild_together
from projections.registry import VIEWS
from projections.views import jobs
from schemas.settings import PostgresSettings

SIZES = (10_000, 100_000, 1_000_000)
QUICK_SIZES = (5_000, 20_000, 60_000)
LONG_STREAM = 10_000
ROUNDS = 5
SAMPLES = 120
"""Of each operation, round and size."""
PAGE = 50
RECENT_JOBS = 100
"""What is looked at: so many in every log, because the smallest has few more."""
FLAT = 1.5

Operation = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Side:
    """One size, ready to be measured."""

    size: int
    operations: dict[str, Operation]
    bus_anew: Operation
    """A command on the long stream by a process that has just begun and knows no stream."""


def measure(*, quick: bool = False) -> list[Result]:
    """Fill three logs and go around them."""
    with scratch() as folder:
        return asyncio.run(_measure(EmbeddedServers(folder / "data", only=["postgres"]), quick=quick))


async def _measure(server: EmbeddedServers, *, quick: bool) -> list[Result]:
    async with server as servers, AsyncExitStack() as stack:
        sides = [
            await stack.enter_async_context(_side(new_database(servers, f"log_{size}"), size))
            for size in (QUICK_SIZES if quick else SIZES)
        ]
        return await _rounds(sides, 2 if quick else ROUNDS, SAMPLES // (4 if quick else 1))


@asynccontextmanager
async def _side(settings: PostgresSettings, size: int) -> AsyncIterator[Side]:
    begun = time.perf_counter()
    story = Story(long_stream=LONG_STREAM)
    await asyncio.to_thread(fill, settings, size + LONG_STREAM, story, commands=True)
    await rebuild_together(settings.conninfo(), [view for view in VIEWS if view.name == "jobs"], {})
    console.print(f"{size:,} events and a stream of {LONG_STREAM:,} in {time.perf_counter() - begun:.0f} s")
    with EventLog.open(settings) as log:
        async with (
            AsyncConnectionPool(settings.conninfo(), min_size=1, max_size=2, open=False) as pool,
            CommandBus(log, HANDLERS) as bus,
        ):
            yield _measurable(size, story, log, bus, pool)


def _measurable(
    size: int, story: Story, log: EventLog, bus: CommandBus, pool: AsyncConnectionPool[Any]
) -> Side:
    chance = random.Random(0)
    agents = list(callers(log, story))
    (long_agent,) = (agent for agent in agents if agent.job_id == story.long_job_id)
    others = [agent for agent in agents if agent is not long_agent]
    homes, ended = story.homes, list(story.ended)
    recent = ended[-RECENT_JOBS:]
    reader = LogReader(pool)

    async def command() -> None:
        await bus.execute(*chance.choice(others).next())

    async def long_command() -> None:
        await bus.execute(*long_agent.next())

    async def recent_job() -> None:
        await one_job(*chance.choice(recent))

    async def any_job() -> None:
        await one_job(*chance.choice(ended))

    async def one_job(job_id: str, organization_id: str) -> None:
        async with pool.connection() as connection:
            if await jobs.get(connection, organization_id, job_id) is None:
                raise AssertionError(f"{job_id} is not there")

    async def page_of_jobs() -> None:
        async with pool.connection() as connection:
            found = await jobs.page(connection, chance.choice(homes).organization_id, limit=PAGE)
        if not found:
            raise AssertionError("an organization has no jobs")

    async def events(home: Home | None) -> None:
        after = chance.randrange(story.head * 9 // 10)
        found = await reader.page(after, PAGE, organization_id=home.organization_id if home else None)
        if len(found) < PAGE:
            raise AssertionError(f"{len(found)} events behind {after}")

    async def bus_anew() -> None:
        async with CommandBus(log, HANDLERS) as other:
            await other.execute(*long_agent.next())

    return Side(
        size,
        {
            "command": command,
            "command on the long stream": long_command,
            "a recent job": recent_job,
            "any job": any_job,
            "page of jobs": page_of_jobs,
            "page of events": lambda: events(None),
            "page of an organization's events": lambda: events(chance.choice(homes)),
        },
        bus_anew,
    )


async def _rounds(sides: list[Side], rounds: int, samples: int) -> list[Result]:
    names = list(sides[0].operations)
    found: dict[str, dict[int, list[float]]] = {name: {side.size: [] for side in sides} for name in names}
    anew: dict[int, list[float]] = {side.size: [] for side in sides}
    for number in range(rounds + 1):
        for name in names:
            taken: dict[int, list[float]] = {side.size: [] for side in sides}
            for _ in range(samples):
                for side in sides:  # one after the other, so that a bad moment is everybody's
                    taken[side.size].append(await _seconds(side.operations[name]))
            if number:  # round 0 warms caches and plans
                for size, seconds in taken.items():
                    found[name][size].append(percentile(seconds, 0.95))
        for side in sides:
            if number:
                anew[side.size].append(await _seconds(side.bus_anew))
        if number:
            console.print(f"round {number} of {rounds}")
    found["first command on the long stream"] = anew
    return [result for name, by_size in found.items() for result in _results(name, by_size)]


def _results(name: str, by_size: dict[int, list[float]]) -> list[Result]:
    smallest, largest = min(by_size), max(by_size)
    times = [big / small for small, big in zip(by_size[smallest], by_size[largest], strict=True)]
    return [
        *(
            Result(f"{name}, {size:,} events", statistics.median(seconds) * 1000, "ms")
            for size, seconds in by_size.items()
        ),
        Result(f"{name}, {largest:,} to {smallest:,}", statistics.median(times), "×", FLAT),
    ]


async def _seconds(operation: Operation) -> float:
    begun = time.perf_counter()
    await operation()
    return time.perf_counter() - begun
