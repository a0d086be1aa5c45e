"""One process of a kind is active at a time: whoever holds its advisory lock, while its connection lives."""

import asyncio
import logging
from types import TracebackType
from typing import NoReturn, Self

import psycopg

logger = logging.getLogger(__name__)

LOCK = 0x6B696E6F7261_01
"""The orchestrator's."""
WAIT_SECONDS = 0.5
CHECK_SECONDS = 1.0
ANSWER_SECONDS = 5.0


class ActivityLost(Exception):
    """The connection that held the lock is gone, so another process may be active by now."""


class Activity:
    """The lock's own connection, on which nothing else happens."""

    def __init__(self, conninfo: str, lock: int = LOCK, role: str = "orchestrator") -> None:
        self._conninfo = conninfo
        self._lock = lock
        self._role = role
        self._connection: psycopg.AsyncConnection | None = None

    async def __aenter__(self) -> Self:
        self._connection = await psycopg.AsyncConnection.connect(
            self._conninfo, autocommit=True, connect_timeout=5, application_name=f"kinora {self._role} lock"
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def acquire(self) -> None:
        """Wait until no other process of this kind is active."""
        connection = self._connected()
        said = False
        while True:
            cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", (self._lock,))
            row = await cursor.fetchone()
            if row is not None and row[0]:
                logger.info("this %s is the active one", self._role)
                return
            if not said:
                logger.info("another %s is active; waiting for it to end", self._role)
                said = True
            await asyncio.sleep(WAIT_SECONDS)

    async def watch(self) -> NoReturn:
        """Return never; raise as soon as the lock may be somebody else's.

        Raises:
            ActivityLost: the connection ended or stopped answering.
        """
        connection = self._connected()
        try:
            while True:
                # Waiting for notifications notices the end of the connection at once.
                async for _ in connection.notifies(timeout=CHECK_SECONDS):
                    pass
                async with asyncio.timeout(ANSWER_SECONDS):
                    await connection.execute("SELECT 1")
        except (psycopg.OperationalError, TimeoutError) as error:
            raise ActivityLost(f"the lock's connection is gone: {error}") from error

    def _connected(self) -> psycopg.AsyncConnection:
        if self._connection is None:
            raise RuntimeError("enter the activity first")
        return self._connection
