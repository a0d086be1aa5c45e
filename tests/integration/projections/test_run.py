"""Whole processes: killed at any moment they neither lose nor repeat an event, and one works at a time."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, LiteralString

import pytest
from psycopg import AsyncConnection

from projections.rebuild_requests import recent_rebuilds, request_rebuild
from projections.settings import ProjectionsSettings
from schemas.events.identity import UserLoggedIn
from tests.integration.projections.world import (
    Tally,
    Writer,
    caught_up,
    eventually,
    new_users,
    position_of,
    running,
    scalar,
    tallies,
)

pytestmark = pytest.mark.slow_process


WAITING: LiteralString = """
SELECT count(*) FROM pg_stat_activity
 WHERE query LIKE '%%pg_try_advisory_lock%%' AND datname = current_database() AND pid <> pg_backend_pid()
"""


@asynccontextmanager
async def child(settings: ProjectionsSettings) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.projections.projections_child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    password = settings.postgres.password.get_secret_value()
    told = settings.model_dump(mode="json")
    told["postgres"]["password"] = password
    process.stdin.write(json.dumps(told).encode() + b"\n")
    await process.stdin.drain()
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while line := await process.stdout.readline():
            if line == b"ready\n":
                return
    raise AssertionError("the process ended before it was ready")


async def is_ready(process: asyncio.subprocess.Process, within: float) -> bool:
    try:
        async with asyncio.timeout(within):
            await ready(process)
    except TimeoutError:
        return False
    return True


async def test_killed_again_and_again_it_counts_every_event_once(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer
) -> None:
    users = new_users(7)
    writer.append(*_crowd(users[0], 1000), organization_id=None)
    last = writer.logins(21, users)
    tiny = settings.model_copy(update={"page_size": 3})
    place, kills = 0, 0
    while place < last:
        async with child(tiny) as process:
            await ready(process)
            goal = min(place + last // 3, last)

            async def moved() -> bool:
                return await position_of(connection, "tally") >= goal  # noqa: B023 - awaited within the round

            await eventually(moved, f"position {goal}")
            process.send_signal(signal.SIGKILL)
            await process.wait()
        kills += 1
        place = await position_of(connection, "tally")
        assert sum((await tallies(connection)).values()) == place, "rows and position agree after every kill"
    assert kills >= 2
    counted = await tallies(connection)
    assert sum(counted.values()) == 1021
    assert counted[users[0]] == 1000 + 3


def _crowd(user: str, count: int) -> list[Any]:
    return [user, *(UserLoggedIn() for _ in range(count))]


async def test_one_works_and_the_next_takes_over(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer
) -> None:
    users = new_users(2)
    async with child(settings) as first:
        await ready(first)
        async with child(settings) as second:
            await caught_up(connection, ["tally"], writer.logins(10, users))

            async def asking() -> bool:
                return bool(await scalar(connection, WAITING))

            await eventually(asking, "the second process to ask for the lock")
            assert not await is_ready(second, within=1.0)
            first.send_signal(signal.SIGKILL)
            await first.wait()
            await ready(second)
            await caught_up(connection, ["tally"], writer.logins(10, users))
            assert await tallies(connection) == dict.fromkeys(users, 10)
            second.send_signal(signal.SIGTERM)
            assert await second.wait() == 0


async def test_a_rebuild_survives_the_death_of_its_process(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer
) -> None:
    users = new_users(1)
    last = writer.append(*_crowd(users[0], 800), organization_id=None)[-1]
    tiny = settings.model_copy(update={"page_size": 2})
    async with running(settings, [Tally()]):
        await caught_up(connection, ["tally"], last)
    async with child(tiny) as process:
        await ready(process)
        await request_rebuild(connection, "tally", reason="test", requested_by="system:test")

        async def half() -> bool:
            found = await recent_rebuilds(connection)
            return found[0].position > 100

        await eventually(half, "a part of the rebuild")
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert (await recent_rebuilds(connection))[0].state == "running"
    async with running(settings, [Tally()]):

        async def done() -> bool:
            return (await recent_rebuilds(connection))[0].state == "done"

        await eventually(done, "the rebuild")
    assert await tallies(connection) == {users[0]: 800}
