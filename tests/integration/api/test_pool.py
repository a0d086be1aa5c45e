"""The API's connections after the database cut all of them."""

import asyncio

import psycopg

from command_api.eventlog.log import EventLog
from command_api.pool import SIZE, TRUSTED_SECONDS, Pool, open_pool
from schemas.settings import PostgresSettings


async def cut_all(database: PostgresSettings) -> None:
    async with await psycopg.AsyncConnection.connect(database.conninfo(), autocommit=True) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


async def use_all(pool: Pool) -> None:
    """Every connection at once: none is given back before all are taken."""
    taken = asyncio.Barrier(SIZE)

    async def use() -> None:
        async with pool.connection() as connection:
            await taken.wait()
            await connection.execute("SELECT 1")

    await asyncio.gather(*(use() for _ in range(SIZE)))


async def test_a_full_pool_that_was_cut_serves_the_next_request(database: PostgresSettings) -> None:
    async with open_pool(database.conninfo(), application_name="test") as pool:
        await use_all(pool)
        assert pool.get_stats()["pool_size"] == SIZE
        await cut_all(database)
        await asyncio.sleep(TRUSTED_SECONDS)  # connections used a moment ago are not asked
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
        await use_all(pool)


async def test_a_log_whose_connections_were_all_cut_is_read(database: PostgresSettings) -> None:
    log = await asyncio.to_thread(EventLog.open, database)
    try:
        heads = [asyncio.to_thread(log.head) for _ in range(12)]
        assert set(await asyncio.gather(*heads)) == {0}
        await cut_all(database)
        assert await asyncio.to_thread(log.head) == 0
    finally:
        await asyncio.to_thread(log.close)
