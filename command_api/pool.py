"""The API's connections for reads: checked before use when they were idle long enough to have been cut."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from psycopg import AsyncConnection, OperationalError
from psycopg_pool import AsyncConnectionPool

Pool = AsyncConnectionPool[AsyncConnection]

SIZE = 16
WAIT_SECONDS = 10.0
TRUSTED_SECONDS = 1.0
"""A connection that was used so recently is handed out without asking the server whether it still is."""


@asynccontextmanager
async def open_pool(conninfo: str, *, application_name: str) -> AsyncIterator[Pool]:
    """Autocommit connections, opened as they are needed."""
    returned: WeakKeyDictionary[AsyncConnection, float] = WeakKeyDictionary()
    purge: asyncio.Task[None] | None = None

    async def note(connection: AsyncConnection) -> None:
        returned[connection] = time.monotonic()

    async def check(connection: AsyncConnection) -> None:
        nonlocal purge
        if time.monotonic() - returned.get(connection, 0.0) <= TRUSTED_SECONDS:
            return
        try:
            await AsyncConnectionPool.check_connection(connection)
        except OperationalError:
            # Where one was cut, all were. The pool itself would try one after the other, waiting twice as
            # long each time, until nothing is left of the caller's patience.
            if purge is None or purge.done():
                purge = asyncio.create_task(pool.check(), name="purge-pool")
            raise

    pool: Pool = AsyncConnectionPool(
        conninfo,
        min_size=1,
        max_size=SIZE,
        timeout=WAIT_SECONDS,
        kwargs={"autocommit": True, "application_name": application_name},
        check=check,
        reset=note,
        open=False,
    )
    async with pool:
        try:
            yield pool
        finally:
            if purge is not None:
                purge.cancel()
                await asyncio.wait([purge])
