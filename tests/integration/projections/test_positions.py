"""Waiting for a view holds no connection and asks nothing while it waits."""

import asyncio
from typing import Any

from psycopg import AsyncConnection

from projections import catalogue
from projections.positions import ViewPositions
from projections.runner import advance
from tests.integration.projections.world import (
    Tally,
    Writer,
    cut_connections,
    eventually,
    new_users,
    scalar,
    timed,
)

LONG = 60.0
"""A poll that never comes within a test: only a notification can wake."""

LISTENER = """
SELECT query_start FROM pg_stat_activity
 WHERE application_name = 'kinora-projections' AND datname = current_database()
"""


async def prepared(connection: AsyncConnection[Any], writer: Writer) -> int:
    position = writer.logins(1, new_users(1))
    await catalogue.install(connection)
    await catalogue.ensure(connection, Tally())
    return position


async def settled(positions: ViewPositions, view: str, position: int) -> None:
    async def known() -> bool:
        return positions.current(view) == position

    await eventually(known, f"{view} to be known at {position}")


async def test_what_is_reached_is_answered_at_once(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str
) -> None:
    position = await prepared(connection, writer)
    await advance(connection, Tally(), 10)
    async with ViewPositions(conninfo, poll_seconds=LONG) as positions:
        assert await positions.wait_for("tally", position) == position
        assert positions.current("tally") == position
        assert positions.current("no such view") == 0


async def test_a_commit_wakes_every_waiter_without_a_query(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str
) -> None:
    position = await prepared(connection, writer)
    async with ViewPositions(conninfo, poll_seconds=LONG) as positions:
        await advance(connection, Tally(), 10)
        await settled(positions, "tally", position)
        last_query = await scalar(connection, LISTENER)
        later = writer.logins(3, new_users(2))
        waiters = [asyncio.create_task(positions.wait_for("tally", later, timeout=20)) for _ in range(500)]
        await asyncio.sleep(0)
        with timed() as elapsed:
            await advance(connection, Tally(), 10)
            assert await asyncio.gather(*waiters) == [later] * 500
            assert elapsed() < 5
        assert await scalar(connection, LISTENER) == last_query, "nobody asked the database"
        assert await scalar(connection, f"SELECT count(*) FROM ({LISTENER}) connections") == 1


async def test_a_view_that_does_not_arrive_answers_where_it_is(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str
) -> None:
    position = await prepared(connection, writer)
    await advance(connection, Tally(), 10)
    async with ViewPositions(conninfo, poll_seconds=LONG) as positions:
        await settled(positions, "tally", position)
        with timed() as elapsed:
            assert await positions.wait_for("tally", position + 1, timeout=0.2) == position
            assert 0.2 <= elapsed() < 2


async def test_a_cut_connection_is_made_anew(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str
) -> None:
    position = await prepared(connection, writer)
    async with ViewPositions(conninfo, poll_seconds=LONG) as positions:
        await advance(connection, Tally(), 10)
        await settled(positions, "tally", position)
        assert cut_connections(conninfo) == 1
        later = writer.logins(1, new_users(1))
        await advance(connection, Tally(), 10)
        assert await positions.wait_for("tally", later, timeout=20) == later


async def test_positions_before_the_first_start(conninfo: str) -> None:
    async with ViewPositions(conninfo, poll_seconds=LONG) as positions:
        assert await positions.wait_for("tally", 1, timeout=0.2) == 0
