"""How far each running import is: a row that the orchestrator rewrites once a second and the API reads."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from command_api.imports.work import Work
from command_api.messaging.board import Item
from command_api.messaging.together import end
from schemas.imports import ImportProgress

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0

TABLE = """
CREATE TABLE IF NOT EXISTS kinora_import_progress (
    item_id text PRIMARY KEY,
    organization_id text NOT NULL,
    attempt integer NOT NULL,
    stage text NOT NULL,
    bytes_done bigint NOT NULL,
    bytes_total bigint,
    updated_at timestamptz NOT NULL DEFAULT now()
)
"""
_WRITE = """
INSERT INTO kinora_import_progress (item_id, organization_id, attempt, stage, bytes_done, bytes_total)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (item_id) DO UPDATE SET
    attempt = excluded.attempt, stage = excluded.stage, bytes_done = excluded.bytes_done,
    bytes_total = excluded.bytes_total, updated_at = now()
"""
_READ = """
SELECT attempt, stage, bytes_done, bytes_total FROM kinora_import_progress
 WHERE item_id = %s AND organization_id = %s AND attempt = %s
"""

Pool = AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]]


class ProgressBoard:
    """Writes the rows. A row that cannot be written is only missed by people, so nothing waits for it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def showing(self, item: Item, work: Work) -> AsyncIterator[None]:
        """Show how far `work` is until the block ends."""
        task = asyncio.create_task(self._follow(item, work), name=f"progress of {item.item_id}")
        try:
            yield
        finally:
            await end([task])
            await self._execute("DELETE FROM kinora_import_progress WHERE item_id = %s", (item.item_id,))

    async def forget_all(self) -> None:
        """What an earlier process left."""
        await self._execute("DELETE FROM kinora_import_progress", ())

    async def _follow(self, item: Item, work: Work) -> None:
        while True:
            row = (item.item_id, item.organization_id, item.attempt)
            await self._execute(_WRITE, (*row, work.stage, work.bytes_done, work.bytes_total))
            await asyncio.sleep(INTERVAL_SECONDS)

    async def _execute(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            async with self._pool.connection() as connection:
                await connection.execute(statement, values)
        except (psycopg.OperationalError, PoolTimeout) as error:
            logger.warning("import progress cannot be written: %s", error)


async def read(pool: Pool, organization_id: str, item_id: str, attempt: int) -> ImportProgress:
    """How far an import is; waiting while no row says more."""
    async with pool.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(ImportProgress))
        await cursor.execute(_READ, (item_id, organization_id, attempt))
        return await cursor.fetchone() or ImportProgress(attempt=attempt, stage="waiting")
