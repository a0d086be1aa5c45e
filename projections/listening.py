"""One LISTEN connection that survives restarts of the server, with a poll behind every notification."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NoReturn

import psycopg
import structlog
from psycopg import AsyncConnection, sql

log = structlog.get_logger(__name__)

EVENTS_CHANNEL = "kinora_events"
PROJECTIONS_CHANNEL = "kinora_projections"
REBUILDS_CHANNEL = "kinora_rebuilds"

CONNECTION_LOST = (psycopg.OperationalError, psycopg.InterfaceError, OSError)
"""The server is away, restarting or too slow; `TimeoutError` is an `OSError`."""

WAKE_SECONDS = 10.0
"""A wake-up that takes longer hangs on a dead connection: a new one is made."""

OnWake = Callable[[AsyncConnection[Any], tuple[str, ...]], Awaitable[None]]


def backoff() -> Iterator[float]:
    """Seconds to wait before each further try: 0.1, 0.2 … 5."""
    seconds = 0.1
    while True:
        yield seconds
        seconds = min(seconds * 2, 5.0)


async def connect(conninfo: str, *, options: str = "") -> AsyncConnection[Any]:
    """An autocommit connection that notices a dead server; transactions are opened explicitly."""
    return await AsyncConnection.connect(
        conninfo,
        autocommit=True,
        connect_timeout=5,
        options=options,
        application_name="kinora-projections",
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
    )


async def follow(conninfo: str, channel: str, on_wake: OnWake, *, poll_seconds: float) -> NoReturn:
    """Call `on_wake` with the payloads of every notification, and with none after connecting and each poll.

    LISTEN comes before the first call, so whatever `on_wake` reads then is either there or announced later.
    """
    delays = backoff()
    while True:
        try:
            async with await connect(conninfo) as connection:
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                payloads: tuple[str, ...] = ()
                while True:
                    async with asyncio.timeout(WAKE_SECONDS):
                        await on_wake(connection, payloads)
                    delays = backoff()
                    received = connection.notifies(timeout=poll_seconds, stop_after=1)
                    payloads = tuple([notification.payload async for notification in received])
        except CONNECTION_LOST as lost:
            log.warning("listener.reconnecting", channel=channel, reason=str(lost))
        except Exception:
            # The door of a listener: were it to end, all who wait on it would wait for ever.
            log.exception("listener.failed", channel=channel)
        await asyncio.sleep(next(delays))
