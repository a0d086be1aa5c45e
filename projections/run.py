"""The projections process: one active per database, every view a task of its own, rebuilds by request."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import structlog
from psycopg import AsyncConnection
from psycopg.rows import scalar_row

from projections import catalogue
from projections.errors import RebuildBusy
from projections.listening import CONNECTION_LOST, REBUILDS_CHANNEL, backoff, connect
from projections.metrics import LAG, PARKED
from projections.reader import read_head
from projections.rebuild import rebuild_together
from projections.rebuild_requests import fail_rebuild, open_rebuilds
from projections.registry import VIEWS
from projections.runner import Projector
from projections.settings import ProjectionsSettings
from projections.tail import LogTail
from projections.view import View

log = structlog.get_logger(__name__)

MEASURE_SECONDS = 2.0

ACTIVE_LOCK = 0x6B696E6F72610002
"""Advisory lock of the one active projections process of a database."""


async def run(
    settings: ProjectionsSettings,
    stop: asyncio.Event,
    *,
    ready: Callable[[], None],
    views: Sequence[View] = VIEWS,
) -> None:
    """Keep the views up to date until `stop` is set.

    `ready` is called once this process is the active one and every view has tables to be queried, caught
    up or not. A second process waits for its turn and calls `ready` only then.
    """
    process = _Process(settings, ready, views)
    serving = asyncio.create_task(process.serve(), name="projections")
    stopping = asyncio.create_task(stop.wait(), name="projections-stop")
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
    finally:
        for task in (serving, stopping):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


class _Process:
    def __init__(
        self, settings: ProjectionsSettings, ready: Callable[[], None], views: Sequence[View]
    ) -> None:
        self._settings = settings
        self._conninfo = settings.postgres.conninfo()
        self._ready = ready
        self._views = {view.name: view for view in views}
        self._was_ready = False
        self._rebuild_wanted = asyncio.Event()

    async def serve(self) -> NoReturn:
        delays = backoff()
        while True:
            try:
                async with await connect(self._conninfo) as connection:
                    await self._become_active(connection)
                    delays = backoff()
                    await self._work(connection)
            except* CONNECTION_LOST as lost:
                log.warning(
                    "projections.reconnecting", reason="; ".join(str(each) for each in lost.exceptions)
                )
            await asyncio.sleep(next(delays))

    async def _become_active(self, connection: AsyncConnection[Any]) -> None:
        """Take the lock. Asking anew beats waiting in the server, which would hold back vacuum."""
        waiting = False
        while True:
            async with connection.cursor(row_factory=scalar_row) as cursor:
                await cursor.execute("SELECT pg_try_advisory_lock(%s)", [ACTIVE_LOCK])
                if await cursor.fetchone():
                    return
            if not waiting:
                log.info("projections.waiting", reason="another projections process is active")
                waiting = True
            await asyncio.sleep(self._settings.poll_seconds)

    async def _work(self, connection: AsyncConnection[Any]) -> None:
        await catalogue.install(connection)
        for view in self._views.values():
            await catalogue.ensure(connection, view)
        if not self._was_ready:
            self._was_ready = True
            self._ready()
        poll, page = self._settings.poll_seconds, self._settings.page_size
        async with LogTail(self._conninfo, poll_seconds=poll) as tail, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_lock(connection), name="projections-lock")
            tasks.create_task(self._measure(), name="projections-metrics")
            tasks.create_task(self._rebuild_on_request(), name="projections-rebuilds")
            for view in self._views.values():
                projector = Projector(self._conninfo, view, tail, page_size=page, poll_seconds=poll)
                tasks.create_task(projector.run(), name=f"projection-{view.name}")

    async def _keep_lock(self, connection: AsyncConnection[Any]) -> NoReturn:
        """Notice within a poll that the lock's connection is gone: everything stops then and starts anew."""
        await connection.execute(f"LISTEN {REBUILDS_CHANNEL}")
        while True:
            self._rebuild_wanted.set()
            async for _ in connection.notifies(timeout=self._settings.poll_seconds, stop_after=1):
                pass
            async with asyncio.timeout(10):
                await connection.execute("SELECT 1")

    async def _measure(self) -> NoReturn:
        while True:
            try:
                async with await connect(self._conninfo) as connection:
                    while True:
                        head = await read_head(connection)
                        for status in await catalogue.statuses(connection):
                            LAG.labels(status.view).set(max(0, head - status.position))
                            PARKED.labels(status.view).set(status.parked_streams)
                        await asyncio.sleep(MEASURE_SECONDS)
            except CONNECTION_LOST as lost:
                log.info("metrics.unmeasured", reason=str(lost))
            await asyncio.sleep(MEASURE_SECONDS)

    async def _rebuild_on_request(self) -> NoReturn:
        while True:
            await self._rebuild_wanted.wait()
            self._rebuild_wanted.clear()
            try:
                await self._rebuild_all()
            except CONNECTION_LOST as lost:
                log.warning("rebuild.interrupted", reason=str(lost))
            except Exception:
                # The door of rebuilding: the reason stands in the request's row, and the old tables serve.
                log.exception("rebuild.failed")

    async def _rebuild_all(self) -> None:
        async with await connect(self._conninfo) as connection:
            asked: defaultdict[int | None, dict[str, int]] = defaultdict(dict)
            for request in await open_rebuilds(connection):
                if request.view in self._views:
                    # What was begun together goes on together.
                    asked[request.fill][request.view] = request.id
                else:
                    known = ", ".join(sorted(self._views))
                    await fail_rebuild(
                        connection, request.id, f"no view is named {request.view}; there are {known}"
                    )
        for requests in asked.values():
            await self._rebuild_together(requests)

    async def _rebuild_together(self, requests: Mapping[str, int]) -> None:
        try:
            outcomes = await rebuild_together(
                self._conninfo,
                [self._views[name] for name in requests],
                requests,
                page_size=self._settings.page_size,
                slice_events=self._settings.rebuild_slice_events,
                processes=self._settings.rebuild_processes,
            )
        except RebuildBusy as busy:
            log.info("rebuild.postponed", reason=busy.message)
            return
        for name, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, Exception):
                log.error("rebuild.refused", view=name, reason=str(outcome))
