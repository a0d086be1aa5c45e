"""Restarts of NATS and of the orchestrator itself: nothing is lost, doubled, or expired by mistake."""

import asyncio
import contextlib

import psycopg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from command_api.messaging.activity import LOCK
from kinora.local.servers import EmbeddedServers
from schemas.events.job import (
    AdapterStored,
    AgentAccepted,
    JobAssigned,
    JobProgressed,
    JobSucceeded,
    LeaseExpired,
    TrainingFinished,
)
from schemas.objects import StoredObject
from schemas.settings import NatsSettings, PostgresSettings, S3Settings
from schemas.subjects import EVENTS_STREAM, POSITION_HEADER
from schemas.work import Accepted, AdapterUploaded, ReportBody, WorkOffer
from tests.integration.messaging.world import (
    ADAPTER_FACTS,
    Agent,
    World,
    active_orchestrator,
    agent_of,
    eventually,
    finished,
    orchestrating,
    progressed,
    settings_of,
    started,
)


async def persistently(agent: Agent, offer: WorkOffer, body: ReportBody) -> None:
    """As a real reporter does: the same report until it is acknowledged."""
    report = agent.number(offer, body)
    while True:
        try:
            await agent.send(report)
        except (NatsError, TimeoutError):
            await asyncio.sleep(0.1)
        else:
            return


async def attempt(world: World, agent: Agent, offer: WorkOffer) -> None:
    await persistently(agent, offer, Accepted())
    await persistently(agent, offer, started())
    for step in range(1, 21):
        await persistently(agent, offer, progressed(step))
        await asyncio.sleep(0.1)
    await persistently(agent, offer, finished())
    adapter = await _upload(agent, offer)
    await persistently(agent, offer, AdapterUploaded(objects=(adapter,), facts=ADAPTER_FACTS))
    await world.event(offer.item_id, JobSucceeded, seconds=40)


async def _upload(agent: Agent, offer: WorkOffer) -> StoredObject:
    while True:
        try:
            return await agent.upload(offer, "adapter", "adapter_model.safetensors", b"adapter")
        except (NatsError, TimeoutError):
            await asyncio.sleep(0.1)


async def test_a_restart_of_nats_under_load_loses_nothing(
    world: World, agent: Agent, servers: EmbeddedServers
) -> None:
    job_ids = [await world.request_job() for _ in range(3)]
    offers = [await agent.take() for _ in job_ids]
    running = [asyncio.create_task(attempt(world, agent, offer)) for offer in offers]
    for _ in range(2):
        await world.event(job_ids[0], JobProgressed)
        await servers.restart("nats")
    await asyncio.gather(*running)
    for job_id in job_ids:
        story = world.events(job_id)
        assert story[story.index(JobAssigned) :] == [
            JobAssigned,
            AgentAccepted,
            *story[story.index(AgentAccepted) + 1 : -3],
            TrainingFinished,
            AdapterStored,
            JobSucceeded,
        ]
        steps = [r.event.step for r in world.story(job_id) if isinstance(r.event, JobProgressed)]
        assert steps == list(range(1, 21))
        assert LeaseExpired not in story

    async def published() -> bool:
        last = await agent.js.get_last_msg(EVENTS_STREAM, "kinora.v1.>")
        return int((last.headers or {})[POSITION_HEADER]) == await asyncio.to_thread(world.log.head)

    await eventually(published, "a relay that has caught up")
    state = (await agent.js.stream_info(EVENTS_STREAM)).state
    assert state.messages == len(await asyncio.to_thread(world.log.read_all, 0, 100_000))


async def test_a_second_orchestrator_waits_and_takes_over(
    world: World, database: PostgresSettings, nats: NatsSettings, s3: S3Settings
) -> None:
    settings = settings_of(database, nats, s3)
    async with orchestrating(settings) as second_started_first:
        await second_started_first.wait()
        async with orchestrating(settings) as waiting, agent_of(world, nats) as agent:
            job_id = await world.request_job()
            offer = await agent.take()
            assert not waiting.is_set()
            await agent.report(offer, Accepted())
            await world.event(job_id, AgentAccepted)
            second_started_first.clear()
            with psycopg.connect(database.conninfo(), autocommit=True) as connection:
                ended = connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks"
                    " WHERE locktype = 'advisory' AND granted AND objid = %s",
                    (LOCK & 0xFFFFFFFF,),
                ).fetchall()
            assert ended

            # Either may get the lock now, and exactly one does.
            async def one_is_active() -> bool:
                return waiting.is_set() or second_started_first.is_set()

            await eventually(one_is_active, "another active orchestrator")
            await agent.report(offer, started())
            await agent.report(offer, progressed(1))
            await world.event(job_id, JobProgressed)
            assert (await agent.beat(offer)).desired == "run"
    assert world.events(job_id).count(JobProgressed) == 1


async def test_reports_and_claims_survive_an_orchestrator(
    world: World, database: PostgresSettings, nats: NatsSettings, s3: S3Settings
) -> None:
    settings = settings_of(database, nats, s3)
    async with agent_of(world, nats) as agent:
        async with active_orchestrator(settings):
            job_id = await world.request_job()
            offer = await agent.take()
            await agent.report(offer, Accepted())
            await agent.report(offer, started())
        await agent.report(offer, progressed(1))
        await agent.report(offer, progressed(2))
        async with active_orchestrator(settings):
            await world.event(job_id, JobProgressed, count=2)
            assert (await agent.beat(offer)).desired == "run"
            assert (await agent.claim(job_id, 1)).outcome == "granted"
    assert world.events(job_id).count(JobAssigned) == 1


async def test_a_restart_of_the_database_is_survived(
    world: World, agent: Agent, servers: EmbeddedServers
) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.report(offer, Accepted())
    await world.event(job_id, AgentAccepted)
    restart = asyncio.create_task(servers.restart("postgres"))
    await agent.report(offer, started())
    await agent.report(offer, progressed(1))
    await restart

    async def is_held() -> bool:
        with contextlib.suppress(TimeoutError, NoRespondersError):
            return (await agent.beat(offer)).desired == "run"
        return False

    await eventually(is_held, "an orchestrator that answers")
    await world.event(job_id, JobProgressed)
    assert LeaseExpired not in world.events(job_id)


async def test_it_waits_for_a_nats_that_is_not_there_yet(
    world: World, database: PostgresSettings, nats: NatsSettings, s3: S3Settings, servers: EmbeddedServers
) -> None:
    settings = settings_of(database, nats, s3)
    nats_child = servers.child("nats")
    await nats_child.stop()
    async with orchestrating(settings) as active:
        job_id = await world.request_job()
        assert not active.is_set()
        await servers.revive("nats")
        async with asyncio.timeout(20):
            await active.wait()
        async with agent_of(world, nats) as agent:
            assert (await agent.take()).item_id == job_id
