"""Nobody deletes objects while somebody copies them: an advisory lock, shared by copiers, owned by a deleter.

A backup copies the objects that the log named a moment ago. Whoever deletes objects asks `deleting` first and
comes back later when it is refused.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

LOCK = 0x6B696E6F7261_02
_CONNECT_SECONDS = 5


@asynccontextmanager
async def keeping(conninfo: str) -> AsyncIterator[None]:
    """No object is deleted inside; waits until a deletion that is under way has ended."""
    async with await _connect(conninfo) as connection:
        await connection.execute("SET lock_timeout = 0")
        await connection.execute("SELECT pg_advisory_lock_shared(%s)", (LOCK,))
        yield


@asynccontextmanager
async def deleting(conninfo: str) -> AsyncIterator[bool]:
    """Whether objects may be deleted inside: False while they are being copied, or deleted by another."""
    async with await _connect(conninfo) as connection:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,))
        row = await cursor.fetchone()
        yield row is not None and bool(row[0])


async def _connect(conninfo: str) -> psycopg.AsyncConnection:
    # Its own connection, on which nothing else happens: the lock lives exactly as long.
    return await psycopg.AsyncConnection.connect(
        conninfo, autocommit=True, connect_timeout=_CONNECT_SECONDS, application_name="kinora keeping objects"
    )
