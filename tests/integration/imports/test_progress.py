"""Progress that is shown and forgotten."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from command_api.imports.progress import ProgressBoard, read
from command_api.imports.work import Work
from command_api.messaging.board import Item
from command_api.settings import ImportSettings
from command_api.tables import ensure_tables
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings


async def test_it_ends_with_the_work_however_short_that_is(
    database: PostgresSettings, tmp_path: Path
) -> None:
    await ensure_tables(database.conninfo())
    work = Work(ImportSettings(reserve_bytes=0), tmp_path, stage="hashing")
    pool: AsyncConnectionPool[AsyncConnection] = AsyncConnectionPool(
        database.conninfo(), min_size=0, max_size=2, kwargs={"autocommit": True}, open=False
    )
    items = [
        Item(
            item_id=new_id(Prefix.DATASET),
            organization_id=new_id(Prefix.ORGANIZATION),
            workspace_id=None,
            correlation_id="req_1",
            phase="importing",
            lane="validate",
            since=datetime.now(UTC),
            attempt=1,
        )
        for _ in range(6)
    ]

    async def briefly(item: Item, yields: int) -> None:
        async with board.showing(item, work):
            for _ in range(yields):
                await asyncio.sleep(0)

    async with pool, asyncio.timeout(20):
        board = ProgressBoard(pool)
        for yields in range(60):  # of a cancellation that comes at each moment of the writing
            await asyncio.gather(*(briefly(item, yields) for item in items))
        for item in items:
            assert (await read(pool, item.organization_id, item.item_id, 1)).stage == "waiting"
