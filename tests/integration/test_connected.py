"""A connection of one's own is closed, also when its user is cancelled while it commits."""

import asyncio

import pytest
from psycopg import AsyncConnection

from command_api.connected import connected
from schemas.settings import PostgresSettings
from tests.integration.messaging.world import eventually

SLOW_COMMIT = """
    CREATE TABLE slow (n int);
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN NOTIFY waiting; PERFORM pg_sleep(60); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION wait();
"""
SLEEPING = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"


async def test_it_is_closed_when_the_commit_is_cancelled(database: PostgresSettings) -> None:
    async with connected(database.conninfo()) as connection:
        await connection.execute(SLOW_COMMIT)
    used: list[AsyncConnection] = []

    async def use() -> None:
        async with connected(database.conninfo()) as connection:
            used.append(connection)
            await connection.execute("INSERT INTO slow VALUES (1)")

    task = asyncio.create_task(use())
    async with connected(database.conninfo(), autocommit=True) as other:

        async def committing() -> bool:
            return bool((await other.execute(SLEEPING)).rowcount)

        await eventually(committing, "a commit under way")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert used[0].closed
        assert (await (await other.execute("SELECT count(*) FROM slow")).fetchone()) == (0,)
