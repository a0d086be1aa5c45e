"""A silent agent loses what it holds, but never because the control plane was away."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from schemas.commands.agent import RevokeAgent
from schemas.events.agent import AgentLost, AgentOnline
from schemas.events.dataset import DatasetValidationInterrupted
from schemas.events.job import AgentAccepted, CheckpointSaved, JobQueued, LeaseExpired
from schemas.settings import NatsSettings, PostgresSettings, S3Settings
from schemas.work import Accepted, CheckpointStored, TrainAssignment, Warned
from tests.integration.messaging.world import (
    Agent,
    World,
    active_orchestrator,
    agent_of,
    settings_of,
    started,
)

LEASE = 2.0


@pytest.fixture
async def orchestrator(
    world: World, database: PostgresSettings, nats: NatsSettings, s3: S3Settings
) -> AsyncIterator[None]:
    async with active_orchestrator(settings_of(database, nats, s3, lease_seconds=LEASE)):
        yield


async def test_the_job_goes_on_as_the_next_attempt_from_its_checkpoint(
    world: World, agent: Agent, nats: NatsSettings
) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.beat(offer)
    await agent.report(offer, Accepted())
    await agent.report(offer, started())
    checkpoint = await agent.upload(offer, "checkpoint", "state.bin", b"state", step=10)
    await agent.report(offer, CheckpointStored(step=10, objects=(checkpoint,)))
    await world.event(job_id, CheckpointSaved)
    await world.event(job_id, LeaseExpired)
    await world.event(agent.agent_id, AgentLost)
    queued = await world.event(job_id, JobQueued, count=2)
    assert isinstance(queued, JobQueued)
    assert (queued.attempt, queued.resume_step, queued.reason) == (2, 10, "lease_expired")
    async with agent_of(world, nats) as other:
        second = await other.take()
        assert second.attempt == 2
        reply = await other.claim(job_id, 2)
        assert isinstance(reply.assignment, TrainAssignment)
        assert reply.assignment.resume_step == 10
        assert reply.assignment.resume_objects == (checkpoint,)
        # The first agent comes back: it is told to let go, and its reports are not believed.
        assert (await agent.beat(offer)).desired == "abandon"
        await agent.report(offer, Warned(code="late", message="still here"))
        await other.report(second, Accepted())
        await world.event(job_id, AgentAccepted, count=2)
    assert world.events(agent.agent_id)[-1] is AgentOnline


async def test_what_a_revoked_agent_holds_goes_back_before_its_lease_ends(
    world: World, database: PostgresSettings, nats: NatsSettings, s3: S3Settings
) -> None:
    settings = settings_of(database, nats, s3, lease_seconds=3600)
    async with active_orchestrator(settings), agent_of(world, nats) as agent:
        job_id = await world.request_job()
        offer = await agent.take()
        await agent.report(offer, Accepted())
        await world.event(job_id, AgentAccepted)
        await world.ask(RevokeAgent(agent_id=agent.agent_id))
        queued = await world.event(job_id, JobQueued, count=2)
        assert isinstance(queued, JobQueued)
        assert (queued.attempt, queued.reason) == (2, "lease_expired")


async def test_heartbeats_keep_the_attempt(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    deadline = time.monotonic() + 2 * LEASE
    while time.monotonic() < deadline:
        assert (await agent.beat(offer)).desired == "run"
        await asyncio.sleep(LEASE / 6)
    assert LeaseExpired not in world.events(job_id)


async def test_a_validation_goes_back_too(world: World, agent: Agent) -> None:
    dataset_id = world.dataset_id[:-4] + "beef"
    await world.upload_dataset(dataset_id)
    await agent.take(lane="validate")
    interrupted = await world.event(dataset_id, DatasetValidationInterrupted)
    assert isinstance(interrupted, DatasetValidationInterrupted)
    assert interrupted.reason == "lease_expired"


async def test_an_orderly_goodbye_is_noted_at_once(world: World, agent: Agent) -> None:
    await agent.beat()
    await world.event(agent.agent_id, AgentOnline)
    await agent.beat(shutting_down=True)
    lost = await world.event(agent.agent_id, AgentLost, seconds=LEASE / 2)
    assert isinstance(lost, AgentLost)
    assert lost.reason == "shut_down"


async def test_a_new_orchestrator_gives_everybody_a_whole_period(
    world: World, database: PostgresSettings, nats: NatsSettings, s3: S3Settings
) -> None:
    settings = settings_of(database, nats, s3, lease_seconds=LEASE)
    async with active_orchestrator(settings), agent_of(world, nats) as agent:
        job_id = await world.request_job()
        offer = await agent.take()
        await agent.beat(offer)
    await asyncio.sleep(1.2 * LEASE)
    async with active_orchestrator(settings), agent_of(world, nats) as silent:
        began = time.monotonic()
        assert silent.agent_id
        await world.event(job_id, LeaseExpired)
        assert time.monotonic() - began > LEASE * 0.8
