"""The orchestrator: relay, work, claims, heartbeats, leases, inbox and policies, one active at a time.

Everything that it knows is folded from the log at start. It may be killed at any moment; another one, or
the same one again, goes on from the log, from EVENTS' last message and from the report cursors.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import psycopg
from nats.js.errors import APIError
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from command_api.audit.findings import Findings
from command_api.audit.missed import Missed
from command_api.credentials.secrets import SecretKey, Secrets
from command_api.credentials.subscriptions import WebhookSecrets
from command_api.eventlog.errors import LogTooNew, LogUnavailable
from command_api.eventlog.log import EventLog
from command_api.handlers.bus import CommandBus
from command_api.handlers.registry import HANDLERS
from command_api.imports.importer import Importer
from command_api.imports.policy import Imports, import_folder
from command_api.imports.progress import ProgressBoard
from command_api.messaging.activity import Activity, ActivityLost
from command_api.messaging.board import Board
from command_api.messaging.broker import Desk, make_broker, subscribe
from command_api.messaging.claims import Claims
from command_api.messaging.connection import UNREACHABLE, ConnectionGone, connect, stay_fresh, stay_open
from command_api.messaging.control import Controls
from command_api.messaging.cursors import Cursors
from command_api.messaging.epochs import Epochs
from command_api.messaging.expiry import Expiry
from command_api.messaging.follower import Follower
from command_api.messaging.gauges import Gauges
from command_api.messaging.heartbeats import Heartbeats
from command_api.messaging.hello import Introductions
from command_api.messaging.inbox import Inbox
from command_api.messaging.leases import Leases
from command_api.messaging.policies import Admission
from command_api.messaging.presigning import Presigning
from command_api.messaging.relay import Relay
from command_api.messaging.renewals import Renewals
from command_api.messaging.revocations import Revocations
from command_api.messaging.subscriber_cursors import SubscriberCursors
from command_api.messaging.subscribers import Subscribers
from command_api.messaging.together import run_together, unwound
from command_api.messaging.topology import Topology
from command_api.messaging.wake import LogWake
from command_api.messaging.watchdog import Watchdog
from command_api.messaging.work import WorkPublisher
from command_api.nats_auth.users import ControlUser
from command_api.objects import ObjectStore
from command_api.settings import OrchestratorSettings
from command_api.storage.schedule import Collections
from command_api.storage.sweeps import ReportCursors, UploadSessions, delivery_sweeps, row_sweeps
from command_api.tables import ensure_tables
from command_api.transparency.alarm import Alarm
from command_api.transparency.heads import Signer
from command_api.transparency.keeper import Keeper
from command_api.transparency.publishing import Publisher
from command_api.uploads import Uploads
from command_api.webhooks.delivery import Webhooks
from command_api.webhooks.ledger import Ledger
from command_api.webhooks.sender import Sender

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
TOO_NEW_SECONDS = 5.0
_IMPORT_PART_BYTES = 16 * 2**20


async def run(settings: OrchestratorSettings, stop: asyncio.Event, *, ready: Callable[[], None]) -> None:
    """Be the active orchestrator, or wait to become it, until `stop` is set.

    `ready` is called every time that it has become active and everything is subscribed.
    """
    while not stop.is_set():
        try:
            await run_together(stop.wait(), _be_active(settings, ready))
        except (ActivityLost, ConnectionGone, LogUnavailable, psycopg.OperationalError) as lost:
            logger.warning("orchestrator: not active any more: %s; starting over", lost)
            await _pause(stop, RETRY_SECONDS)
        except LogTooNew as newer:
            # Deciding without it could contradict it. Whoever is waiting and can read it is active meanwhile.
            logger.error(  # noqa: TRY400 - the message says it all
                "orchestrator: %s; stepping aside: upgrade this orchestrator. Trainings go on meanwhile",
                newer,
            )
            await _pause(stop, TOO_NEW_SECONDS)


async def _be_active(settings: OrchestratorSettings, ready: Callable[[], None]) -> None:
    async with Activity(settings.postgres.conninfo()) as activity:
        await activity.acquire()
        await run_together(activity.watch(), _orchestrate(settings, ready))


async def _orchestrate(settings: OrchestratorSettings, ready: Callable[[], None]) -> None:
    async with unwound() as stack:
        conninfo = settings.postgres.conninfo()
        log = await asyncio.to_thread(EventLog.open, settings.postgres)
        stack.push_async_callback(asyncio.to_thread, log.close)
        bus = await stack.enter_async_context(CommandBus(log, HANDLERS))
        store = await stack.enter_async_context(ObjectStore(settings.s3))
        cursors = Cursors(conninfo)
        await ensure_tables(conninfo)

        wake = LogWake(conninfo)
        follower = Follower(log, Board(), wake.waiter())
        await follower.catch_up()

        reconnections: list[Callable[[], None]] = []

        async def reconnected() -> None:
            for notice in reconnections:
                notice()

        client = await stack.enter_async_context(
            connect(settings.nats, "kinora-orchestrator", reconnected=reconnected)
        )
        topology = Topology(client.jetstream(), settings.events_max_bytes)
        await _until_answered("making the streams", topology.ensure_streams)

        clock = asyncio.get_running_loop().time
        leases = Leases(settings.lease_seconds)
        relay = Relay(client, topology, log, Epochs(conninfo), wake.waiter())
        work = WorkPublisher(topology, follower, republish_seconds=settings.republish_seconds)
        inbox = Inbox(topology.js, follower, bus, store, cursors)
        expiry = Expiry(
            follower,
            bus,
            leases,
            clock,
            # Heartbeats come over the broker's connection, everything else over the other.
            connected=lambda: client.is_connected and broker.connection.is_connected,
            unread=inbox.unread,
        )
        revocations = Revocations(follower, settings.nats, settings.nats_operator)
        reconnections += [relay.check_soon, work.republish_soon, expiry.restart, revocations.tell_again]
        collections = Collections(
            log,
            store,
            conninfo,
            (
                UploadSessions(conninfo, store, settings.upload_idle_seconds),
                ReportCursors(conninfo, follower),
                *row_sweeps(conninfo),
                *delivery_sweeps(conninfo, settings.webhooks.keep_days),
            ),
            every_seconds=settings.collect_every_seconds,
            grace_seconds=settings.collect_grace_seconds,
        )
        controls = Controls(client, follower)
        admission = Admission(follower, bus, store)
        keeper = Keeper(
            conninfo,
            log.log_id,
            None if settings.audit_key_pem is None else Signer.of(settings.audit_key_pem),
            Alarm(Findings(bus, ("log",)), log.log_id),
            wake.waiter(),
            head_seconds=settings.audit_head_seconds,
        )
        gauges = Gauges(follower, topology, log, lambda: relay.position)
        imports = await stack.enter_async_context(_imports(settings, follower, bus, store))
        webhooks = await stack.enter_async_context(_webhooks(settings, log, bus, wake))

        desk = Desk(
            claim=Claims(follower, bus, leases, clock).claim,
            heartbeat=Heartbeats(follower, bus, leases, clock).beat,
            presign=Presigning(follower, store, expires_seconds=settings.s3.presign_seconds).presign,
            hello=Introductions(
                follower, bus, topology, settings.heartbeat_seconds, settings.lease_seconds
            ).hello,
            renew=Renewals(follower, settings.nats).renew,
            report=inbox.deliver,
        )
        requests = ControlUser.of(settings.nats, "kinora-orchestrator-requests")
        broker = make_broker(settings.nats.url, requests, reconnected=reconnected)
        reports = subscribe(broker, desk)
        # In this order backwards: no more reports are fetched, those at hand are settled, then all ends.
        stack.push_async_callback(broker.stop)
        stack.push_async_callback(inbox.finish)
        stack.push_async_callback(reports.stop)
        await _until_answered("subscribing", broker.start)

        ready()
        await run_together(
            wake.run(),
            follower.run(),
            relay.run(),
            work.run(),
            expiry.run(),
            inbox.run(),
            controls.run(),
            admission.run(),
            collections.run(),
            revocations.run(),
            Subscribers(
                follower,
                topology,
                SubscriberCursors(conninfo),
                Missed(log, Findings(bus, ("subscriber",)), conninfo),
            ).run(),
            keeper.run(),
            Publisher(conninfo, store, topology.js, keeper.signed()).run(),
            gauges.run(),
            imports.run(),
            webhooks.run(),
            Watchdog(topology, inbox, reports.again).run(),
            stay_open(client, broker.connection),
            stay_fresh(broker.connection, requests),
        )


@asynccontextmanager
async def _imports(
    settings: OrchestratorSettings, follower: Follower, bus: CommandBus, store: ObjectStore
) -> AsyncIterator[Imports]:
    pool: AsyncConnectionPool[AsyncConnection] = AsyncConnectionPool(
        settings.postgres.conninfo(),
        min_size=0,
        max_size=4,
        kwargs={"autocommit": True, "application_name": "kinora-imports"},
        open=False,
    )
    async with pool, import_folder(settings.work_folder) as folder:
        progress = ProgressBoard(pool)
        await progress.forget_all()
        importer = Importer(
            bus,
            store,
            Uploads(store, pool, part_bytes=_IMPORT_PART_BYTES, max_bytes=settings.imports.max_bytes),
            Secrets(pool, SecretKey.from_secrets(settings.secrets)),
            progress,
            settings,
            folder,
        )
        yield Imports(follower, importer, at_once=settings.imports.at_once)


@asynccontextmanager
async def _webhooks(
    settings: OrchestratorSettings, log: EventLog, bus: CommandBus, wake: LogWake
) -> AsyncIterator[Webhooks]:
    pool: AsyncConnectionPool[AsyncConnection] = AsyncConnectionPool(
        settings.postgres.conninfo(),
        min_size=0,
        max_size=4,
        kwargs={"autocommit": True, "application_name": "kinora-webhooks"},
        open=False,
    )
    async with pool, Sender(settings.webhooks) as sender:
        yield Webhooks(
            log,
            Ledger(pool),
            WebhookSecrets.from_secrets(settings.secrets),
            sender.post,
            bus,
            settings.webhooks,
            wake.waiter(),
            clock=lambda: datetime.now(UTC),
        )


async def _until_answered(what: str, ask: Callable[[], Awaitable[None]]) -> None:
    """NATS may be reachable before JetStream is, and may go away at any moment."""
    while True:
        try:
            await ask()
        except (*UNREACHABLE, APIError) as error:
            logger.warning("NATS: %s failed (%s); trying again", what, str(error) or type(error).__name__)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
