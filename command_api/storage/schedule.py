"""Runs collections in the orchestrator: those that somebody asked for, and one every day."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from psycopg import AsyncConnection

from command_api.connected import connected
from command_api.eventlog.log import EventLog
from command_api.messaging.together import run_together
from command_api.objects import ObjectStore
from command_api.storage.collector import Collector
from command_api.storage.outcome import Outcome, Tally
from command_api.storage.requests import (
    Collection,
    begin_next,
    finish,
    note_progress,
    request_if_due,
)
from command_api.storage.sweeps import Sweep
from schemas.errors import KinoraError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often to look for requests, and to tell how far one is."""


class Collections:
    """One at a time, by the one orchestrator that is active."""

    def __init__(
        self,
        log: EventLog,
        store: ObjectStore,
        conninfo: str,
        sweeps: Sequence[Sweep],
        *,
        every_seconds: float,
        grace_seconds: float,
    ) -> None:
        self._log = log
        self._store = store
        self._conninfo = conninfo
        self._sweeps = sweeps
        self._every_seconds = every_seconds
        self._grace = timedelta(seconds=grace_seconds)

    async def run(self) -> None:
        """Carry out what is asked for until cancelled."""
        async with connected(
            self._conninfo, autocommit=True, connect_timeout=5, application_name="kinora collections"
        ) as connection:
            while True:
                if self._every_seconds:
                    await request_if_due(connection, self._every_seconds)
                while (collection := await begin_next(connection)) is not None:
                    await self._carry_out(connection, collection)
                await asyncio.sleep(LOOK_SECONDS)

    async def _carry_out(self, connection: AsyncConnection, collection: Collection) -> None:
        tally, error = Tally(), None
        try:
            await run_together(
                self._collect(tally, collection.dry_run), self._tell(connection, collection.id, tally)
            )
        except KinoraError as refused:
            error = refused.message
        except Exception as bug:  # the collection's door: it must not end the whole orchestrator
            logger.exception("collection %d failed", collection.id)
            error = f"internal error: {type(bug).__name__}; the orchestrator's log tells more"
        outcome = tally.outcome()
        await finish(connection, collection.id, tally.seen, outcome, error)
        _say(collection, tally, outcome, error)

    async def _collect(self, tally: Tally, dry_run: bool) -> None:
        for sweep in self._sweeps:
            tally.swept[sweep.name] = await (sweep.count() if dry_run else sweep.sweep())
        before = datetime.now(UTC) - self._grace
        await Collector(self._log, self._store, self._conninfo, before).collect(tally, dry_run=dry_run)

    async def _tell(self, connection: AsyncConnection, identifier: int, tally: Tally) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await note_progress(connection, identifier, tally.seen)


def _say(collection: Collection, tally: Tally, outcome: Outcome, error: str | None) -> None:
    logger.log(
        logging.INFO if error is None else logging.WARNING,
        "collection %d for %s%s: %d objects looked at, %d (%d bytes) %s, %s swept%s",
        collection.id,
        collection.requested_by,
        " (dry run)" if collection.dry_run else "",
        tally.seen,
        outcome.total.objects,
        outcome.total.bytes,
        "would go" if collection.dry_run else "deleted",
        outcome.swept,
        "" if error is None else f"; ended early: {error}",
    )
