"""The auditor: proves without end that stream and read models are what the log says, one active at a time.

It only reads, and appends its findings. It may be killed at any moment; the next one goes on with its walks.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import psycopg
from nats.js.errors import APIError
from psycopg import AsyncConnection

from command_api import metrics
from command_api.audit.findings import Findings
from command_api.audit.read_models import ReadModelAudit
from command_api.audit.stream import StreamAudit
from command_api.connected import connected
from command_api.eventlog.errors import LogUnavailable
from command_api.eventlog.log import EventLog
from command_api.handlers.bus import CommandBus
from command_api.handlers.registry import HANDLERS
from command_api.messaging.activity import Activity, ActivityLost
from command_api.messaging.connection import UNREACHABLE, ConnectionGone, connect, stay_open
from command_api.messaging.epochs import Epochs
from command_api.messaging.together import run_together, unwound
from command_api.nats_auth.rights import auditor_rights
from command_api.settings import AuditorSettings
from command_api.tables import ensure_tables
from projections.registry import VIEWS
from projections.view import View

logger = logging.getLogger(__name__)

LOCK = 0x6B696E6F7261_06
RETRY_SECONDS = 1.0


async def run(
    settings: AuditorSettings,
    stop: asyncio.Event,
    *,
    ready: Callable[[], None],
    views: tuple[View, ...] = VIEWS,
) -> None:
    """Be the active auditor, or wait to become it, until `stop` is set; `ready` is called when it is."""
    while not stop.is_set():
        try:
            await run_together(stop.wait(), _be_active(settings, ready, views))
        except (ActivityLost, ConnectionGone, LogUnavailable, psycopg.OperationalError) as lost:
            logger.warning("auditor: not active any more: %s; starting over", lost)
            await _pause(stop, RETRY_SECONDS)


async def _be_active(settings: AuditorSettings, ready: Callable[[], None], views: tuple[View, ...]) -> None:
    async with Activity(settings.postgres.conninfo(), LOCK, "auditor") as activity:
        await activity.acquire()
        await run_together(activity.watch(), _audit(settings, ready, views))


async def _audit(settings: AuditorSettings, ready: Callable[[], None], views: tuple[View, ...]) -> None:
    conninfo = settings.postgres.conninfo()
    async with unwound() as stack:
        log = await asyncio.to_thread(EventLog.open, settings.postgres)
        stack.push_async_callback(asyncio.to_thread, log.close)
        await ensure_tables(conninfo)
        bus = await stack.enter_async_context(CommandBus(log, HANDLERS))
        for_rows = await stack.enter_async_context(_connection(conninfo))
        for_stream = await stack.enter_async_context(_connection(conninfo))
        client = await stack.enter_async_context(
            connect(settings.nats, "kinora-auditor", rights=auditor_rights)
        )
        findings = Findings(bus, ("stream", "read_model"))
        stream = StreamAudit(client, for_stream, Epochs(conninfo), findings, log.log_id)
        read_models = ReadModelAudit(for_rows, views, findings)

        async def look_at_rows() -> bool:
            await findings.learn(for_rows)
            await read_models.round()
            return False

        metrics.AUDITOR_ACTIVE.set(1)
        stack.callback(metrics.AUDITOR_ACTIVE.set, 0)
        ready()
        await run_together(
            _again("stream", stream.round, settings),
            _again("read models", look_at_rows, settings),
            stay_open(client),
        )


async def _again(what: str, look: Callable[[], Awaitable[bool]], settings: AuditorSettings) -> NoReturn:
    """Look for ever, for no more than `effort` of the time, and soon again where there is more to see."""
    clock = asyncio.get_running_loop().time
    while True:
        began, more = clock(), False
        try:
            more = await look()
        except (*UNREACHABLE, APIError) as error:
            logger.info("audit of the %s: cannot look (%s)", what, str(error) or type(error).__name__)
        spent = clock() - began
        pause = spent * (1 / settings.effort - 1)
        await asyncio.sleep(pause if more else max(settings.round_seconds, pause))


@asynccontextmanager
async def _connection(conninfo: str) -> AsyncIterator[AsyncConnection[Any]]:
    async with connected(
        conninfo, autocommit=True, connect_timeout=5, application_name="kinora-auditor"
    ) as connection:
        yield connection


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
