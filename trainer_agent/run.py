"""The agent's process: connects, introduces itself and works until it is told to stop."""

import asyncio
from collections.abc import Callable

import httpx
import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from schemas.events.agent import Capabilities
from schemas.preflight import offered
from schemas.subjects import LANES, Lane, agent_inbox
from schemas.work import Assignment, DatasetAssignment, HeldItem, ModelAssignment, TrainAssignment, log_fields
from trainer_agent import control, heartbeat, recovery
from trainer_agent.artifacts import Artifacts
from trainer_agent.attempt import Attempt, Work
from trainer_agent.cache import ContentCache
from trainer_agent.connection import Connection
from trainer_agent.credentials import NodeCredentials
from trainer_agent.folders import AttemptFolder, WorkFolder, locked
from trainer_agent.hello import Standing, introduce, probe
from trainer_agent.metrics import WORKING
from trainer_agent.orders import Orders
from trainer_agent.presign import Presigner
from trainer_agent.renewal import renew
from trainer_agent.reporter import Reporter, reporting
from trainer_agent.settings import AgentSettings
from trainer_agent.spool import Spool
from trainer_agent.staging import Staging
from trainer_agent.tracing import continued
from trainer_agent.training import Training
from trainer_agent.transfer import http_client
from trainer_agent.utilisation import measure
from trainer_agent.validation import DatasetValidation, ModelValidation
from trainer_agent.waiting import running, unless
from trainer_agent.work_loop import Offers, WorkLoop

log = structlog.get_logger()
_tracer = trace.get_tracer(__name__)


async def run(settings: AgentSettings, stop: asyncio.Event, *, ready: Callable[[], None]) -> None:
    """Work until `stop` is set, then give back in order what is held.

    `ready` is called when the control plane has welcomed this agent for the first time.

    Raises:
        WorkFolderInUse: another agent runs in the same folder.
        ProbeFailed: the engine does not work on this node.
        ShutOut: this node was revoked; its engine is gone and nothing more is reported.
    """
    with locked(settings.work_folder) as folder:
        await asyncio.to_thread(folder.clean_leftovers)
        capabilities = await unless(stop, probe(settings))
        if capabilities is None:
            return
        log.info("probed", device=capabilities.device, profile=capabilities.profile)
        await serve(settings, folder, capabilities, stop, ready=ready)


async def serve(
    settings: AgentSettings,
    folder: WorkFolder,
    capabilities: Capabilities,
    stop: asyncio.Event,
    *,
    ready: Callable[[], None],
) -> None:
    """`run` for a node whose capabilities are known."""
    async with http_client() as http:
        await _Node(settings, folder, http, capabilities).serve(stop, ready)


class _Node:
    """Everything that the attempts on this node share."""

    def __init__(
        self,
        settings: AgentSettings,
        folder: WorkFolder,
        http: httpx.AsyncClient,
        capabilities: Capabilities,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._http = http
        self._capabilities = capabilities
        self._orders = Orders()
        self._standing = Standing()
        self._cache = ContentCache(folder.cache, settings.cache_bytes)
        self._credentials = NodeCredentials(settings.nats, folder.nats_jwt)
        self._connection = Connection(
            self._credentials,
            name=f"kinora agent {settings.name}",
            inbox_prefix=agent_inbox(settings.agent_id),
        )

    async def serve(self, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        await asyncio.to_thread(self._cache.prepare)
        control.listen(self._connection, self._settings, self._orders)
        async with self._connection as connection:
            hello = introduce(connection, self._settings, self._capabilities, self._standing, ready)
            beats = heartbeat.beat(connection, self._settings, self._orders, self._standing)
            renewals = renew(connection, self._credentials, self._settings, self._http)
            busy = measure(lambda: connection.client is not None)
            async with (
                running(renewals),
                running(hello),
                running(beats),
                running(busy),
                running(self._shut_down(stop)),
            ):
                await self._work(stop)
            await heartbeat.say_goodbye(connection, self._settings)

    async def _shut_down(self, stop: asyncio.Event) -> None:
        await stop.wait()
        log.info("shutting_down", held=self._orders.held)
        await self._orders.shut_down()

    async def _work(self, stop: asyncio.Event) -> None:
        settled = await unless(stop, self._settle_the_past())
        welcomed = await unless(stop, self._standing.accepted.wait())
        if settled is None or not welcomed or self._standing.reply is None:
            return
        pool = self._standing.reply.pool or self._settings.pool
        lanes: tuple[Lane, ...] = LANES if self._capabilities.four_bit_kernel else ()
        if not lanes:
            log.warning("no_work_taken", reason="the 4-bit kernel does not run on this node")
        offers = Offers(self._connection, self._settings.organization_id, pool, lanes, self._orders)
        loop = WorkLoop(self._connection, self._settings, self._orders, offers, self._begin)
        for held in settled:
            loop.forget(held)
        await loop.run()

    async def _settle_the_past(self) -> list[HeldItem]:
        """Report the end of what an earlier run held; its offers may still lie on the queue."""
        left_over = list(recovery.left_over(self._folder))
        for held in left_over:
            await recovery.give_back(self._connection, self._settings, self._folder, held)
        return left_over

    async def _begin(self, held: HeldItem, assignment: Assignment, traceparent: str | None) -> None:
        fields = log_fields(held.item_id, held.attempt)
        with (
            structlog.contextvars.bound_contextvars(**fields),
            _tracer.start_as_current_span(
                f"attempt {assignment.kind}",
                continued(traceparent),
                SpanKind.CONSUMER,
                {f"kinora.{name}": value for name, value in fields.items()}
                | {"kinora.agent_id": self._settings.agent_id},
            ),
            WORKING.track_inprogress(),
        ):
            log.info("attempt_began", kind=assignment.kind)
            spool = Spool(self._folder.spool(held))
            folder = self._folder.attempt(held)
            async with reporting(self._connection, self._settings, held, spool) as reporter:
                await Attempt(
                    self._kind_of_work(assignment, held, folder, reporter),
                    held=held,
                    folder=folder,
                    spool=spool,
                    reporter=reporter,
                    orders=self._orders,
                    settings=self._settings,
                ).run()
            await asyncio.to_thread(self._cache.trim)

    def _kind_of_work(
        self, assignment: Assignment, held: HeldItem, folder: AttemptFolder, reporter: Reporter
    ) -> Work:
        presigner = Presigner(self._connection, self._settings, held)
        staging = Staging(self._http, presigner, self._cache, self._settings.organization_id)
        artifacts = Artifacts(self._http, presigner)
        match assignment:
            case TrainAssignment():
                return Training(
                    assignment,
                    held,
                    settings=self._settings,
                    memory_bytes=max(1, offered(self._capabilities)),
                    connection=self._connection,
                    folder=folder,
                    staging=staging,
                    artifacts=artifacts,
                    reporter=reporter,
                )
            case DatasetAssignment():
                return DatasetValidation(assignment, folder=folder, staging=staging, artifacts=artifacts)
            case ModelAssignment():
                return ModelValidation(assignment, folder=folder, staging=staging)
