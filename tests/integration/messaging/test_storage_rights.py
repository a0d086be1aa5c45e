"""Who may touch what in the store: an attempt's holder its own folder and inputs, nobody anything else."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from command_api.messaging.artifacts import with_proven_artifacts
from command_api.messaging.board import Item
from schemas.events.job import AttemptFailed, CheckpointSaved, JobQueued, TrainingStarted
from schemas.ids import Prefix, new_id
from schemas.objects import StoredObject, adapter_prefix, checkpoint_prefix
from schemas.settings import NatsSettings, NatsUser, PostgresSettings, S3Settings
from schemas.subjects import agent_inbox
from schemas.work import (
    Accepted,
    CheckpointStored,
    Failed,
    HeldItem,
    PresignRequest,
    Released,
    Report,
    ReportBody,
    TrainAssignment,
    UploadRequest,
    UploadTarget,
    WorkOffer,
)
from tests.conftest import AgentUser
from tests.integration.messaging.world import (
    Agent,
    World,
    active_orchestrator,
    agent_of,
    eventually,
    make_world,
    settings_of,
    started,
)
from trainer_agent.artifacts import Artifacts
from trainer_agent.cache import ContentCache
from trainer_agent.connection import Connection
from trainer_agent.credentials import NodeCredentials
from trainer_agent.presign import Presigner
from trainer_agent.settings import AgentSettings
from trainer_agent.staging import Staging
from trainer_agent.transfer import http_client

SHORT = 1
"""Seconds that URLs live here."""
FILE = {"path": "state.bin", "size_bytes": 3, "sha256": "0" * 64}


@pytest.fixture
async def orchestrator(
    world: World, database: PostgresSettings, nats: NatsSettings, s3: S3Settings
) -> AsyncIterator[None]:
    short = s3.model_copy(update={"presign_seconds": SHORT})
    async with active_orchestrator(settings_of(database, nats, short)):
        yield


def asking(offer: WorkOffer, **fields: object) -> PresignRequest:
    return PresignRequest.model_validate({"item_id": offer.item_id, "attempt": offer.attempt, **fields})


def a_checkpoint(offer: WorkOffer) -> PresignRequest:
    return asking(offer, upload=[{"purpose": "checkpoint", "step": 1, "file": FILE}])


class LatePresigner(Presigner):
    """Hands its first URLs on only when they have run out, as a slow transfer before them would."""

    def __init__(self, http: httpx.AsyncClient, connection: Connection, held: HeldItem, of: AgentSettings):
        super().__init__(connection, of, held)
        self._http = http
        self.asked = 0

    async def downloads(self, keys: Sequence[str]) -> tuple[str, ...]:
        urls = await super().downloads(keys)
        await self._let_run_out(urls[0])
        return urls

    async def uploads(self, requests: Sequence[UploadRequest]) -> tuple[UploadTarget, ...]:
        targets = await super().uploads(requests)
        await self._let_run_out(targets[0].url)
        return targets

    async def _let_run_out(self, url: str) -> None:
        self.asked += 1
        if self.asked == 1:

            async def ran_out() -> bool:
                # Another method than its own is 403 while it is valid, and 400 once its time is over.
                return (await self._http.delete(url)).status_code == 400

            await eventually(ran_out, "the URL to run out")


@asynccontextmanager
async def late_presigner(
    agent: Agent, nats: NatsUser, offer: WorkOffer, folder: Path
) -> AsyncIterator[tuple[httpx.AsyncClient, LatePresigner]]:
    settings = AgentSettings(
        agent_id=agent.agent_id,
        organization_id=agent.organization_id,
        pool=agent.pool,
        name="node",
        nats=nats,
        work_folder=folder,
    )
    held = HeldItem(item_id=offer.item_id, attempt=offer.attempt)
    inbox = agent_inbox(agent.agent_id)
    credentials = NodeCredentials(nats, folder / "nats.jwt")
    async with Connection(credentials, name="late", inbox_prefix=inbox) as connection, http_client() as http:
        await connection.session_after(0)
        yield http, LatePresigner(http, connection, held, settings)


async def test_an_agent_whose_urls_ran_out_asks_for_new_ones_and_goes_on(
    world: World, agent: Agent, nats_agent: AgentUser, tmp_path: Path
) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    assignment = (await agent.claim(job_id, 1)).assignment
    assert isinstance(assignment, TrainAssignment)
    user = nats_agent(agent.organization_id, agent.agent_id)
    async with late_presigner(agent, user, offer, tmp_path) as (http, presigner):
        cache = ContentCache(tmp_path / "cache", 10**9)
        cache.prepare()
        staging = Staging(http, presigner, cache, world.organization_id)
        listing = await staging.listing(assignment.dataset_listing, tmp_path / "listing.json")
        assert [file.path for file in listing.files] == ["a.mp4", "captions.jsonl"]
        assert presigner.asked == 2
    async with late_presigner(agent, user, offer, tmp_path) as (http, presigner):
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        for name in ("a", "b"):
            (folder / name).write_bytes(name.encode() * 1000)
        stored = await Artifacts(http, presigner).store_folder(folder, "checkpoint", 3)
        assert presigner.asked > 1
    for each in stored:
        assert await world.store.hash(each.key) == (each.sha256, each.size_bytes)


async def test_an_older_attempt_touches_nothing_of_the_newer_one(
    world: World, agent: Agent, nats: NatsSettings
) -> None:
    job_id = await world.request_job()
    first = await agent.take()
    await agent.report(first, Accepted())
    await agent.report(first, started())
    await world.event(job_id, TrainingStarted)
    kept = (await agent.presign(a_checkpoint(first))).uploads[0]
    await agent.report(first, Released(reason="shut down"))
    await world.event(job_id, JobQueued, count=2)
    async with agent_of(world, nats) as other, httpx.AsyncClient(trust_env=False) as http:
        second = await other.take()
        assert second.attempt == 2
        (target,) = (await other.presign(a_checkpoint(second))).uploads
        assert target.object.key.startswith(checkpoint_prefix(world.organization_id, job_id, 2, 1))
        (await http.put(target.url, content=b"new")).raise_for_status()
        # The old holder gets no URL, for its own attempt or the other's; its old one leads to its own folder.
        for offer in (first, second):
            refused = await agent.presign(a_checkpoint(offer))
            assert (refused.uploads, refused.retryable) == ((), False)
        assert kept.object.key.startswith(checkpoint_prefix(world.organization_id, job_id, 1, 1))
        await http.put(kept.url, content=b"old")
        assert await world.store.get_bytes(target.object.key) == b"new"
        # What it says that it stored is not believed, neither as its own nor as the newer attempt's.
        for offer in (first, second):
            await agent.report(offer, CheckpointStored(step=1, objects=(kept.object,)))
        await other.report(second, Accepted())
        await other.report(second, started())
        await other.report(second, CheckpointStored(step=1, objects=(target.object,)))
        saved = await world.event(job_id, CheckpointSaved)
    assert isinstance(saved, CheckpointSaved)
    assert (saved.attempt, saved.objects) == (2, (target.object,))
    assert world.events(job_id).count(CheckpointSaved) == 1


async def test_nobody_else_gets_a_url(
    world: World, agent: Agent, nats: NatsSettings, database: PostgresSettings, s3: S3Settings
) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    assignment = (await agent.claim(job_id, 1)).assignment
    assert isinstance(assignment, TrainAssignment)
    wanted = (
        asking(offer, download=[assignment.manifest.key]),
        asking(offer, download=[assignment.dataset_listing.key]),
        a_checkpoint(offer),
    )
    async with (
        make_world(database, s3) as elsewhere,
        agent_of(world, nats) as colleague,
        agent_of(elsewhere, nats) as foreigner,
    ):
        unknown = Agent(agent.client, world.organization_id, "agt_" + "0" * 32)
        disguised = Agent(foreigner.client, world.organization_id, foreigner.agent_id)
        renamed = Agent(agent.client, elsewhere.organization_id, agent.agent_id)
        for stranger in (colleague, foreigner, unknown, disguised, renamed):
            for request in wanted:
                answer = await stranger.presign(request)
                assert answer.error is not None
                assert (answer.downloads, answer.uploads, answer.retryable) == ((), (), False)
        # Neither does a holder get what is another organization's.
        await elsewhere.make_inputs()
        foreign = await elsewhere.keep("manifest.json", b"theirs")
        answer = await agent.presign(asking(offer, download=[assignment.manifest.key, foreign.key]))
        assert answer.error is not None
        assert answer.downloads == ()
    assert (await agent.presign(wanted[0])).error is None


async def test_a_report_that_names_somebody_elses_object_is_not_believed(world: World) -> None:
    job_id = new_id(Prefix.JOB)
    item = Item(
        item_id=job_id,
        organization_id=world.organization_id,
        workspace_id=world.workspace_id,
        correlation_id="req_1",
        phase="held",
        lane="train",
        since=datetime.now(UTC),
        attempt=1,
    )
    own, next_step = (checkpoint_prefix(world.organization_id, job_id, 1, step) for step in (1, 2))

    async def judged(key: str) -> ReportBody:
        await world.store.put_bytes(key, b"abc")
        named = StoredObject(path="state.bin", key=key, size_bytes=3, sha256="0" * 64)
        body = CheckpointStored(step=1, objects=(named,))
        report = Report(item_id=job_id, attempt=1, sequence=1, occurred_at=datetime.now(UTC), body=body)
        return (await with_proven_artifacts(world.store, item, report)).body

    for key in (
        f"{checkpoint_prefix('org_' + '0' * 32, job_id, 1, 1)}/state.bin",
        f"{adapter_prefix(world.organization_id, 'job_' + '0' * 32, 1)}/state.bin",
        f"{checkpoint_prefix(world.organization_id, job_id, 2, 1)}/state.bin",
        f"{next_step}/state.bin",
        f"{own}/other.bin",
        f"{own}/deeper/state.bin",
    ):
        refused = await judged(key)
        assert isinstance(refused, Failed), key
        assert refused.code == "artifact_missing"
    assert isinstance(await judged(f"{own}/state.bin"), CheckpointStored)


async def test_a_report_with_a_climbing_key_holds_up_nobody(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.report(offer, Accepted())
    await agent.report(offer, started())
    key = f"{checkpoint_prefix(world.organization_id, job_id, 1, 1)}/../checkpoint-2/state.bin"
    named = StoredObject(path="state.bin", key=key, size_bytes=3, sha256="0" * 64)
    await agent.report(offer, CheckpointStored(step=1, objects=(named,)))
    failed = await world.event(job_id, AttemptFailed)
    assert isinstance(failed, AttemptFailed)
    assert failed.code == "artifact_missing"
    assert CheckpointSaved not in world.events(job_id)
