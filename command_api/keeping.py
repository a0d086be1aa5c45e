"""Nobody deletes objects while somebody copies them: an advisory lock, shared by copiers, owned by a deleter.

A backup copies the objects that the log named a moment ago. Whoever deletes objects asks `deleting` first and
comes back later when it is refused.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from command_api.connected import connected
from schemas.errors import KinoraError

LOCK = 0x6B696E6F7261_02
_CONNECT_SECONDS = 5
_PASS_SECONDS = 10


class ObjectsInDeletion(KinoraError):
    """Objects are being deleted for longer than usual."""

    code = "objects_in_deletion"
    retryable = True


class ObjectsUnguarded(KinoraError):
    """The lock was lost with its connection, so objects may have been deleted meanwhile."""

    code = "objects_unguarded"
    retryable = True


@dataclass(frozen=True, slots=True)
class Keeping:
    """The lock of one copier."""

    _connection: psycopg.AsyncConnection

    async def confirm(self) -> None:
        """Ask whether nothing was deleted so far; before anybody relies on what was copied.

        Raises:
            ObjectsUnguarded: when the lock is gone: begin again.
        """
        try:
            await self._connection.execute("SELECT 1")
        except psycopg.OperationalError as error:
            raise ObjectsUnguarded(
                "the connection to the database was lost while objects were copied; begin again"
            ) from error


@asynccontextmanager
async def keeping(conninfo: str) -> AsyncIterator[Keeping]:
    """No object is deleted inside; waits until a deletion that is under way has ended."""
    async with _connect(conninfo) as connection:
        await connection.execute("SET lock_timeout = 0")
        await connection.execute("SELECT pg_advisory_lock_shared(%s)", (LOCK,))
        yield Keeping(connection)


async def pass_deletions(connection: psycopg.AsyncConnection) -> None:
    """Wait until the deletion that is under way, if any, has ended; a later one reads the log after this.

    So whoever has said in the log that an object is needed, and then waits here, can believe what the store
    says of it from then on.

    Raises:
        ObjectsInDeletion: when it takes too long.
    """
    async with kept_meanwhile(connection):
        pass


@asynccontextmanager
async def kept_meanwhile(connection: psycopg.AsyncConnection) -> AsyncIterator[None]:
    """No object is deleted inside, which is meant to be short: it holds a transaction of `connection`.

    Raises:
        ObjectsInDeletion: when a deletion that is under way takes too long.
    """
    async with connection.transaction():
        await connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{_PASS_SECONDS}s",))
        try:
            await connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (LOCK,))
        except psycopg.errors.LockNotAvailable as error:
            raise ObjectsInDeletion(
                "unneeded objects are being deleted and the store is slow; try again"
            ) from error
        yield


@asynccontextmanager
async def deleting(conninfo: str) -> AsyncIterator[bool]:
    """Whether objects may be deleted inside: False while they are being copied, or deleted by another."""
    async with _connect(conninfo) as connection:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,))
        row = await cursor.fetchone()
        yield row is not None and bool(row[0])


def _connect(conninfo: str) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
    # Its own connection, on which nothing else happens: the lock lives exactly as long.
    return connected(
        conninfo, autocommit=True, connect_timeout=_CONNECT_SECONDS, application_name="kinora keeping objects"
    )
