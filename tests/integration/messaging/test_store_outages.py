"""While the object store is away, reports wait: nothing that was reported is lost, and no attempt with it."""

from collections.abc import AsyncIterator

import pytest

from command_api.messaging import inbox
from kinora.local.servers import EmbeddedServers
from schemas.events.agent import AgentLost
from schemas.events.job import (
    AttemptFailed,
    CheckpointSaved,
    JobSucceeded,
    LeaseExpired,
    TrainingFinished,
    TrainingStarted,
    WarningRaised,
)
from schemas.settings import NatsSettings, PostgresSettings, S3Settings
from schemas.work import Accepted, AdapterUploaded, CheckpointStored, Warned
from tests.integration.messaging.world import (
    ADAPTER_FACTS,
    Agent,
    World,
    active_orchestrator,
    agent_of,
    eventually,
    finished,
    settings_of,
    started,
    without,
)

LEASE = 2.0


@pytest.fixture
async def orchestrator(
    world: World, database: PostgresSettings, nats: NatsSettings, s3: S3Settings
) -> AsyncIterator[None]:
    async with active_orchestrator(settings_of(database, nats, s3, lease_seconds=LEASE)):
        yield


async def test_a_lease_does_not_expire_over_a_report_that_waits(
    world: World, agent: Agent, nats: NatsSettings, servers: EmbeddedServers
) -> None:
    async with agent_of(world, nats) as other:
        await other.beat()
        await world.event(other.agent_id, AgentLost)
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.beat(offer)
    await agent.report(offer, Accepted())
    await agent.report(offer, started())
    await agent.report(offer, finished())
    adapter = await agent.upload(offer, "adapter", "adapter_model.safetensors", b"adapter")
    await world.event(job_id, TrainingFinished)
    async with without(servers, "s3"):
        # The agent has done all that it can do; whether it is heard afterwards must not matter.
        await agent.report(offer, AdapterUploaded(objects=(adapter,), facts=ADAPTER_FACTS))
        await world.event(agent.agent_id, AgentLost)
    await world.event(job_id, JobSucceeded)
    assert LeaseExpired not in world.events(job_id)


async def test_a_report_that_waits_is_not_taken_for_lost(
    world: World,
    agent: Agent,
    servers: EmbeddedServers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(inbox, "GAP_SECONDS", 4.0)
    monkeypatch.setattr(inbox, "STORE_SECONDS", 0.5)
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.report(offer, Accepted())
    await agent.report(offer, started())
    checkpoint = await agent.upload(offer, "checkpoint", "state.bin", b"state", step=10)
    await world.event(job_id, TrainingStarted)
    async with without(servers, "s3"):
        await agent.report(offer, CheckpointStored(step=10, objects=(checkpoint,)))
        await agent.report(offer, Warned(code="slow", message="behind the checkpoint"))

        async def looked_at_often() -> bool:
            await agent.beat(offer)
            return sum("waits for the object store" in line for line in caplog.messages) >= 3

        await eventually(looked_at_often, "the reports to be looked at several times", seconds=60)
    await world.event(job_id, WarningRaised)
    story = world.events(job_id)
    assert story.index(CheckpointSaved) < story.index(WarningRaised)
    assert AttemptFailed not in story
