"""An organization with usable inputs, made through the real bus and store, and an agent that speaks NATS."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import httpx
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import ServiceUnavailableError
from pydantic import SecretStr

from command_api import orchestrator
from command_api.eventlog.log import EventLog
from command_api.handlers.base import Context
from command_api.handlers.bus import CommandBus, Outcome
from command_api.handlers.registry import HANDLERS
from command_api.messaging.connection import connect
from command_api.objects import ObjectStore
from command_api.settings import ControlSecrets, OrchestratorSettings
from kinora.local.servers import EmbeddedServers, ServerName
from schemas import work
from schemas.commands import Command
from schemas.commands.agent import EnrollAgent
from schemas.commands.dataset import (
    ClaimDatasetValidation,
    CompleteDatasetUpload,
    JudgeDataset,
    RegisterDataset,
    StartDatasetUpload,
)
from schemas.commands.job import RequestJob
from schemas.commands.model import (
    ClaimModelValidation,
    CompleteModelUpload,
    JudgeModel,
    RegisterModel,
    StartModelUpload,
)
from schemas.datasets import Clip, DatasetFacts, Example, Manifest, ModelFacts
from schemas.envelope import Recorded
from schemas.events import Event
from schemas.events.job import Priority, ProgressPoint
from schemas.ids import Prefix, new_id
from schemas.objects import FileEntry, Listing, StoredObject, content_key
from schemas.settings import NatsSettings, PostgresSettings, S3Settings
from schemas.subjects import (
    WORK_STREAM,
    claim_subject,
    heartbeat_subject,
    hello_subject,
    presign_subject,
    report_subject,
    work_durable,
)
from schemas.training import AdapterFacts, Hyperparameters

T = TypeVar("T")
ANSWER_SECONDS = 5.0


async def eventually(condition: Callable[[], Awaitable[T | None]], what: str, seconds: float = 20) -> T:
    """The first truthy result of `condition`, which looks at another process or task."""
    deadline = time.monotonic() + seconds
    while True:
        result = await condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        await asyncio.sleep(0.02)


@dataclass
class World:
    """One organization as the API process would have made it."""

    log: EventLog
    bus: CommandBus
    store: ObjectStore
    organization_id: str = field(default_factory=lambda: new_id(Prefix.ORGANIZATION))
    workspace_id: str = field(default_factory=lambda: new_id(Prefix.WORKSPACE))
    user_id: str = field(default_factory=lambda: new_id(Prefix.USER))
    dataset_id: str = field(default_factory=lambda: new_id(Prefix.DATASET))
    model_id: str = field(default_factory=lambda: new_id(Prefix.MODEL))

    async def ask(self, command: Command) -> Outcome:
        request = new_id(Prefix.REQUEST)
        context = Context(
            actor=self.user_id,
            organization_id=self.organization_id,
            workspace_id=self.workspace_id,
            request_id=request,
            correlation_id=request,
            causation_id=request,
        )
        return await self.bus.execute(command, context)

    async def keep(self, path: str, content: bytes) -> StoredObject:
        sha256 = hashlib.sha256(content).hexdigest()
        key = content_key(self.organization_id, sha256)
        await self.store.put_bytes(key, content)
        return StoredObject(path=path, key=key, size_bytes=len(content), sha256=sha256)

    async def listing(self, *names: str) -> StoredObject:
        files = [await self.keep(name, name.encode()) for name in names]
        entries = tuple(FileEntry(path=f.path, size_bytes=f.size_bytes, sha256=f.sha256) for f in files)
        return await self.keep("listing.json", Listing(files=entries).model_dump_json().encode())

    async def enroll(self, pool: str = "default") -> str:
        agent_id = new_id(Prefix.AGENT)
        await self.ask(EnrollAgent(agent_id=agent_id, name="node", pool=pool))
        return agent_id

    async def upload_dataset(self, dataset_id: str) -> None:
        """Declared and uploaded; it waits for validation."""
        listing = await self.listing("a.mp4", "captions.jsonl")
        upload = new_id(Prefix.UPLOAD)
        register = RegisterDataset(
            dataset_id=dataset_id,
            name="clips",
            description="",
            owner_id=self.user_id,
            listing=listing,
            file_count=2,
            size_bytes=19,
        )
        await self.ask(register)
        await self.ask(StartDatasetUpload(dataset_id=dataset_id, upload_id=upload))
        await self.ask(CompleteDatasetUpload(dataset_id=dataset_id, upload_id=upload))

    async def make_inputs(self) -> None:
        """A ready dataset and a ready base model, judged by an agent that is not there any more."""
        await self.ensure_dataset()
        await self.ensure_model()

    async def ensure_dataset(self) -> None:
        agent_id = await self.enroll()
        await self.upload_dataset(self.dataset_id)
        claim = ClaimDatasetValidation(dataset_id=self.dataset_id, agent_id=agent_id, attempt=1)
        await self.ask(claim)
        judge = JudgeDataset(
            dataset_id=self.dataset_id,
            agent_id=agent_id,
            attempt=1,
            facts=FACTS,
            manifest=await self.keep("manifest.json", MANIFEST.model_dump_json().encode()),
        )
        await self.ask(judge)

    async def ensure_model(self, facts: ModelFacts | None = None) -> None:
        agent_id, upload = await self.enroll(), new_id(Prefix.UPLOAD)
        register = RegisterModel(
            model_id=self.model_id,
            name="tiny",
            description="",
            owner_id=self.user_id,
            listing=await self.listing("config.json", "model.safetensors"),
            file_count=2,
            size_bytes=28,
        )
        await self.ask(register)
        await self.ask(StartModelUpload(model_id=self.model_id, upload_id=upload))
        await self.ask(CompleteModelUpload(model_id=self.model_id, upload_id=upload))
        await self.ask(ClaimModelValidation(model_id=self.model_id, agent_id=agent_id, attempt=1))
        judge = JudgeModel(
            model_id=self.model_id,
            agent_id=agent_id,
            attempt=1,
            facts=facts or MODEL_FACTS,
            content_sha256="c" * 64,
        )
        await self.ask(judge)

    async def request_job(self, *, priority: Priority = "normal", pool: str = "default") -> str:
        job_id = new_id(Prefix.JOB)
        request = RequestJob(
            job_id=job_id,
            name="a job",
            owner_id=self.user_id,
            dataset_id=self.dataset_id,
            model_id=self.model_id,
            hyperparameters=Hyperparameters(max_steps=20, batch_size=2),
            pool=pool,
            priority=priority,
            labels={},
        )
        await self.ask(request)
        return job_id

    def story(self, stream_id: str) -> list[Recorded]:
        return self.log.read_stream(stream_id)

    def events(self, stream_id: str) -> list[type[Event]]:
        return [type(recorded.event) for recorded in self.story(stream_id)]

    async def event(self, stream_id: str, kind: type[Event], count: int = 1, seconds: float = 20) -> Event:
        """The `count`-th event of that kind in the stream, once it is there."""

        async def look() -> Event | None:
            story = await asyncio.to_thread(self.story, stream_id)
            found = [recorded.event for recorded in story if isinstance(recorded.event, kind)]
            return found[count - 1] if len(found) >= count else None

        return await eventually(look, f"{count} {kind.__name__} of {stream_id}", seconds)


@asynccontextmanager
async def make_world(database: PostgresSettings, s3: S3Settings) -> AsyncIterator[World]:
    with EventLog.open(database) as log:
        async with CommandBus(log, HANDLERS) as bus, ObjectStore(s3) as store:
            await store.ensure_bucket()
            yield World(log, bus, store)


def settings_of(
    database: PostgresSettings, nats: NatsSettings, s3: S3Settings, *, lease_seconds: float = 30
) -> OrchestratorSettings:
    key = SecretStr("00" * 32)
    return OrchestratorSettings(
        postgres=database,
        nats=nats,
        s3=s3,
        secrets=ControlSecrets(token_private_key_pem=key, personal_key_hex=key, index_key_hex=key),
        lease_seconds=lease_seconds,
        heartbeat_seconds=lease_seconds / 6,
        republish_seconds=1,
    )


@asynccontextmanager
async def orchestrating(settings: OrchestratorSettings) -> AsyncIterator[asyncio.Event]:
    """A running orchestrator; the event says that it is active. Leaving stops it."""
    active, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(orchestrator.run(settings, stop, ready=active.set))
    try:
        yield active
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await task


@asynccontextmanager
async def active_orchestrator(settings: OrchestratorSettings) -> AsyncIterator[None]:
    async with orchestrating(settings) as active:
        async with asyncio.timeout(20):
            await active.wait()
        yield


@asynccontextmanager
async def without(servers: EmbeddedServers, name: ServerName) -> AsyncIterator[None]:
    """One of the servers is away for as long as the context lasts, whatever happens in it."""
    await servers.child(name).stop()
    try:
        yield
    finally:
        await servers.revive(name)


@dataclass
class Agent:
    """Speaks an agent's side of the protocol, one message at a time, so that tests choose the order."""

    client: Client
    organization_id: str
    agent_id: str
    pool: str = "default"
    sequence: dict[tuple[str, int], int] = field(default_factory=dict)

    @property
    def js(self) -> JetStreamContext:
        return self.client.jetstream()

    async def offered(self, lane: str = "train", priority: str = "normal", seconds: float = 15) -> Msg:
        """The next offer of the pool's queue, unacknowledged."""
        durable = work_durable(self.organization_id, self.pool, lane, priority)

        async def bind() -> JetStreamContext.PullSubscription | None:
            try:
                await self.js.consumer_info(WORK_STREAM, durable)
            except Exception:
                return None
            return await self.js.pull_subscribe_bind(durable=durable, stream=WORK_STREAM)

        subscription = await eventually(bind, f"the queue {durable}")

        async def fetched() -> list[Msg]:
            try:
                return await subscription.fetch(1, timeout=seconds)
            except ServiceUnavailableError:  # the server tells of a new consumer before it hears its pulls
                return []

        try:
            return (await eventually(fetched, f"an offer of {durable}"))[0]
        finally:
            await subscription.unsubscribe()

    async def claim(self, item_id: str, attempt: int) -> work.ClaimReply:
        body = work.ClaimRequest(item_id=item_id, attempt=attempt)
        subject = claim_subject(self.organization_id, self.agent_id)
        return work.ClaimReply.model_validate_json(await self.request(subject, body))

    async def take(self, lane: str = "train", priority: str = "normal") -> work.WorkOffer:
        """Fetch an offer, claim it and acknowledge it."""
        message = await self.offered(lane, priority)
        offer = work.WorkOffer.model_validate_json(message.data)
        reply = await self.claim(offer.item_id, offer.attempt)
        await message.ack_sync(timeout=ANSWER_SECONDS)
        assert reply.outcome == "granted", reply
        return offer

    async def beat(self, offer: work.WorkOffer | None = None, **fields: bool) -> work.HeartbeatReply:
        held = offer and work.HeldItem(item_id=offer.item_id, attempt=offer.attempt)
        subject = heartbeat_subject(self.organization_id, self.agent_id)
        reply = await self.request(subject, work.Heartbeat(held=held, **fields))
        return work.HeartbeatReply.model_validate_json(reply)

    async def hello(self, hello: work.Hello) -> work.HelloReply:
        subject = hello_subject(self.organization_id, self.agent_id)
        return work.HelloReply.model_validate_json(await self.request(subject, hello))

    async def presign(self, request: work.PresignRequest) -> work.PresignReply:
        subject = presign_subject(self.organization_id, self.agent_id)
        return work.PresignReply.model_validate_json(await self.request(subject, request))

    def number(
        self, offer: work.WorkOffer, body: work.ReportBody, sequence: int | None = None
    ) -> work.Report:
        """The next report of the attempt, or one with a sequence of its own."""
        place = offer.item_id, offer.attempt
        if sequence is None:
            sequence = self.sequence[place] = self.sequence.get(place, 0) + 1
        return work.Report(
            item_id=offer.item_id,
            attempt=offer.attempt,
            sequence=sequence,
            occurred_at=datetime.now(UTC),
            body=body,
        )

    async def report(
        self, offer: work.WorkOffer, body: work.ReportBody, *, sequence: int | None = None
    ) -> work.Report:
        """Number a report and publish it once."""
        report = self.number(offer, body, sequence)
        await self.send(report)
        return report

    async def send(self, report: work.Report) -> None:
        subject = report_subject(self.organization_id, self.agent_id, report.item_id)
        await self.js.publish(subject, report.model_dump_json().encode(), timeout=ANSWER_SECONDS)

    async def upload(
        self, offer: work.WorkOffer, purpose: str, path: str, content: bytes, step: int = 0
    ) -> StoredObject:
        """Put a file where the control plane says."""
        file = FileEntry(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        request = work.PresignRequest.model_validate(
            {
                "item_id": offer.item_id,
                "attempt": offer.attempt,
                "upload": [{"purpose": purpose, "step": step, "file": file.model_dump()}],
            }
        )
        reply = await self.presign(request)
        assert reply.error is None, reply
        async with httpx.AsyncClient(trust_env=False) as http:
            (await http.put(reply.uploads[0].url, content=content)).raise_for_status()
        return reply.uploads[0].object

    async def request(self, subject: str, body: work.Message) -> bytes:
        return (
            await self.client.request(subject, body.model_dump_json().encode(), timeout=ANSWER_SECONDS)
        ).data


@asynccontextmanager
async def agent_of(world: World, nats: NatsSettings, pool: str = "default") -> AsyncIterator[Agent]:
    agent_id = await world.enroll(pool)
    async with connect(nats, agent_id) as client:
        yield Agent(client, world.organization_id, agent_id, pool)


FACTS = DatasetFacts(
    clips=10, examples=10, frames=80, duration_seconds=8.0, size_bytes=4000, smallest_clip_frames=8
)
MODEL_FACTS = ModelFacts(
    family="smolvlm",
    architecture="SmolVLMForConditionalGeneration",
    parameters=1000,
    quantized_linear_layers=10,
    vision_linear_layers=4,
    connector_linear_layers=1,
    text_linear_layers=5,
    context_tokens=512,
    image_size=32,
)
ADAPTER_FACTS = AdapterFacts(
    family="smolvlm", base_model_sha256="c" * 64, rank=8, alpha=16.0, trainable_parameters=100, steps=20
)
MANIFEST = Manifest(
    clips=tuple(
        Clip(
            path=f"{number}.mp4",
            sha256=f"{number:064x}",
            size_bytes=400,
            frames=8,
            duration_seconds=0.8,
            width=32,
            height=32,
            codec="h264",
        )
        for number in range(10)
    ),
    examples=tuple(
        Example(clip=f"{number}.mp4", prompt="what?", response="this", row=number + 1) for number in range(10)
    ),
)


def started() -> work.Started:
    return work.Started(
        start_step=0,
        total_steps=20,
        trainable_parameters=100,
        total_parameters=1000,
        training_examples=8,
        held_out_examples=2,
        device="cpu",
    )


def progressed(step: int) -> work.Progressed:
    point = ProgressPoint(
        step=step,
        loss=2.0,
        learning_rate=1e-3,
        grad_norm=1.0,
        tokens=10,
        tokens_per_second=5.0,
        step_seconds=0.1,
    )
    return work.Progressed(step=step, total_steps=20, epoch=1.0, points=(point,))


def finished() -> work.Finished:
    return work.Finished(steps=20, loss_first=2.0, loss_last=1.0, seconds=2.0)
