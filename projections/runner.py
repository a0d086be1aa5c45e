"""Keeping one view up to date: a page's rows and the position are one commit, for ever, whatever restarts."""

import asyncio
from dataclasses import dataclass
from typing import Any, NoReturn

import structlog
from psycopg import AsyncConnection

from projections import catalogue
from projections.folding import fold
from projections.listening import CONNECTION_LOST, PROJECTIONS_CHANNEL, backoff, connect
from projections.metrics import EVENTS
from projections.reader import scan
from projections.rebuild_requests import request_rebuild
from projections.tail import LogTail
from projections.view import View, active_schema

log = structlog.get_logger(__name__)

# A crash of the server may lose the last pages, rows and position alike: they are read again. So no
# commit here waits for the disk, nor makes appends wait behind it.
NO_FSYNC = "-c synchronous_commit=off"

RETRY_REBUILD_SECONDS = 60.0
"""How long a refused automatic rebuild is left alone."""


@dataclass(frozen=True)
class Step:
    """What one page came to."""

    position: int
    events: int


async def advance(connection: AsyncConnection[Any], view: View, page_size: int) -> Step | None:
    """Fold the next page into the active generation, in one transaction.

    Returns:
        None when the active generation was made by other code and waits for its rebuild.
    """
    async with connection.transaction():
        active = await catalogue.lock_active(connection, view.name)
        if active is None or active.version != view.version:
            return None
        rows = await scan(connection, active.position, page_size, view.types)
        if not rows:
            return Step(active.position, 0)
        await catalogue.use_schema(connection, active_schema(view.name))
        await fold(connection, view, active.generation, rows)
        position = rows[-1].position
        await catalogue.move(connection, view.name, position)
    await announce(connection, view.name, position)
    return Step(position, len(rows))


async def announce(connection: AsyncConnection[Any], view: str, position: int) -> None:
    """Wake who waits for the view. A transaction of its own: a commit that notifies holds a lock of the whole
    server, under which appends would wait for the page's commit."""
    await connection.execute("SELECT pg_notify(%s, %s)", [PROJECTIONS_CHANNEL, f"{view} {position}"])


class Projector:
    """The task of one view, with a connection of its own, so that a slow view holds up no other."""

    def __init__(
        self, conninfo: str, view: View, tail: LogTail, *, page_size: int, poll_seconds: float
    ) -> None:
        self._conninfo = conninfo
        self._view = view
        self._tail = tail
        self._page_size = page_size
        self._poll_seconds = poll_seconds

        self._delays = backoff()

    async def run(self) -> NoReturn:
        """Follow the log until cancelled."""
        while True:
            try:
                async with await connect(self._conninfo, options=NO_FSYNC) as connection:
                    while True:
                        await self._become_current(connection)
                        await self._follow(connection)
            except CONNECTION_LOST as lost:
                log.warning("projection.reconnecting", view=self._view.name, reason=str(lost))
            except Exception:
                # The door of a view's task: the other views go on, and so does this one once it can.
                log.exception("projection.failed", view=self._view.name)
            await asyncio.sleep(next(self._delays))

    async def _become_current(self, connection: AsyncConnection[Any]) -> None:
        """Return once the active generation is one that this code can go on with."""
        while (reason := await catalogue.ensure(connection, self._view)) is not None:
            await request_rebuild(
                connection,
                self._view.name,
                reason=reason,
                requested_by="system:projections",
                unless_failed_within_seconds=RETRY_REBUILD_SECONDS,
            )
            await asyncio.sleep(self._poll_seconds)

    async def _follow(self, connection: AsyncConnection[Any]) -> None:
        """Fold page after page; return when the active generation is no longer ours to write."""
        while (step := await advance(connection, self._view, self._page_size)) is not None:
            self._delays = backoff()
            EVENTS.labels(self._view.name).inc(step.events)
            if step.events == 0 and self._tail.head > step.position:
                # The tail saw events that the table does not hold: another log may have been restored.
                await asyncio.sleep(self._poll_seconds)
                return
            if step.events < self._page_size:
                await self._tail.wait(step.position)
