"""Connections that are used once and are closed then, whatever happens meanwhile."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection


@asynccontextmanager
async def connected(
    conninfo: str, *, autocommit: bool = False, connect_timeout: int = 5, application_name: str | None = None
) -> AsyncIterator[AsyncConnection[Any]]:
    """A connection of the caller's own: committed at the end, rolled back after an error, and closed.

    psycopg's own context leaves the connection open when the task is cancelled during that commit.

    Raises:
        psycopg.OperationalError: the database does not answer, or not any more.
    """
    connection = await AsyncConnection.connect(
        conninfo, autocommit=autocommit, connect_timeout=connect_timeout, application_name=application_name
    )
    try:
        async with connection:
            yield connection
    finally:
        await connection.close()
