"""Tells the orchestrator's parts that the log may have grown: NOTIFY for speed, a poll for certainty."""

import asyncio
import logging

import psycopg

from command_api.connected import connected

logger = logging.getLogger(__name__)

CHANNEL = "kinora_events"


class LogWake:
    """One LISTEN connection for the whole process; every waiter has an event of its own."""

    def __init__(self, conninfo: str, *, poll_seconds: float = 1.0) -> None:
        self._conninfo = conninfo
        self._poll_seconds = poll_seconds
        self._waiters: list[asyncio.Event] = []

    def waiter(self) -> asyncio.Event:
        """An event that is set after every append, and at least once per poll period."""
        event = asyncio.Event()
        event.set()
        self._waiters.append(event)
        return event

    def tell(self) -> None:
        """Wake everybody now."""
        for event in self._waiters:
            event.set()

    async def run(self) -> None:
        """Listen until cancelled. Without the database it goes on polling, so nobody sleeps for ever."""
        while True:
            try:
                await self._listen()
            except psycopg.OperationalError as error:
                logger.warning("LISTEN %s: %s; polling until it is back", CHANNEL, error)
                self.tell()
                await asyncio.sleep(self._poll_seconds)

    async def _listen(self) -> None:
        async with connected(self._conninfo, autocommit=True) as connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            while True:
                self.tell()
                async for _ in connection.notifies(timeout=self._poll_seconds, stop_after=1):
                    pass
