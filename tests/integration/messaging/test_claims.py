"""Work reaches one agent, and whoever asks again is answered alike."""

import asyncio

import httpx
import pytest
from nats.aio.msg import Msg
from nats.js.errors import APIError

from command_api.messaging.connection import connect
from command_api.messaging.work import ALREADY_THERE, STORE_FAILED
from schemas.commands.job import StopJob
from schemas.events.agent import AgentOnline, AgentProbed, Capabilities
from schemas.events.job import (
    AgentAccepted,
    JobAssigned,
    JobFailed,
    JobPlanned,
    JobQueued,
    JobRequested,
    JobStopped,
    JobValidationStarted,
)
from schemas.ids import Prefix, new_id
from schemas.objects import checkpoint_prefix
from schemas.settings import NatsSettings
from schemas.subjects import WORK_STREAM, control_subject, work_subject
from schemas.work import Accepted, Control, Hello, PresignRequest, TrainAssignment, WorkOffer
from tests.integration.messaging.world import MODEL_FACTS, Agent, World, agent_of, eventually
from tests.unit.domain.test_foreseen import SEVEN_BILLION, node


async def test_a_requested_job_is_planned_queued_offered_and_granted(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    message = await agent.offered()
    offer = WorkOffer.model_validate_json(message.data)
    assert offer == WorkOffer(item_id=job_id, attempt=1)
    reply = await agent.claim(job_id, 1)
    await message.ack_sync()
    assert reply.outcome == "granted"
    assert isinstance(reply.assignment, TrainAssignment)
    assert reply.assignment.total_steps == 20
    assert world.events(job_id) == [JobRequested, JobValidationStarted, JobPlanned, JobQueued, JobAssigned]
    assigned = world.story(job_id)[-1]
    assert assigned.metadata.actor == agent.agent_id
    assert assigned.metadata.workspace_id == world.workspace_id
    assert assigned.metadata.correlation_id == world.story(job_id)[0].metadata.correlation_id


async def test_a_lost_claim_reply_is_answered_alike(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    again = await asyncio.gather(*(agent.claim(job_id, offer.attempt) for _ in range(4)))
    assert {reply.outcome for reply in again} == {"granted"}
    assert len({reply.model_dump_json() for reply in again}) == 1
    assert world.events(job_id).count(JobAssigned) == 1


async def test_of_two_agents_one_gets_it(world: World, agent: Agent, nats: NatsSettings) -> None:
    job_id = await world.request_job()
    await world.event(job_id, JobQueued)
    async with agent_of(world, nats) as other:
        replies = await asyncio.gather(agent.claim(job_id, 1), other.claim(job_id, 1))
        assert sorted(reply.outcome for reply in replies) == ["gone", "granted"]
        assert (await agent.claim(job_id, 2)).outcome == "gone"
    assert world.events(job_id).count(JobAssigned) == 1


async def test_an_agent_of_another_organization_gets_nothing(
    world: World, agent: Agent, nats: NatsSettings
) -> None:
    job_id = await world.request_job()
    await world.event(job_id, JobQueued)
    stranger = World(world.log, world.bus, world.store)
    async with agent_of(stranger, nats) as other:
        assert (await other.claim(job_id, 1)).outcome == "gone"
    liar = Agent(agent.client, stranger.organization_id, agent.agent_id)
    assert (await liar.claim(job_id, 1)).outcome == "gone"


async def test_an_agent_of_another_pool_gets_nothing(world: World, agent: Agent, nats: NatsSettings) -> None:
    job_id = await world.request_job()
    await world.event(job_id, JobQueued)
    async with agent_of(world, nats, "gpu") as other:
        assert (await other.claim(job_id, 1)).outcome == "gone"


async def test_work_holds_one_message_per_job_and_a_stop_withdraws_it(
    world: World, agent: Agent, nats: NatsSettings
) -> None:
    job_id = await world.request_job(priority="high")
    subject = work_subject(agent.organization_id, agent.pool, "train", "high", job_id)
    await agent.offered(priority="high")

    async def held() -> int:
        return (await agent.js.stream_info(WORK_STREAM)).state.messages

    # Published again while the first one is in flight: it must not be doubled.
    async with connect(nats, "test") as control:
        with pytest.raises(APIError) as refused:
            await control.jetstream().publish(subject, b"{}", stream=WORK_STREAM)
    assert (refused.value.err_code, refused.value.description) == (STORE_FAILED, ALREADY_THERE)
    assert await held() == 1
    await world.ask(StopJob(job_id=job_id, mode="graceful", reason="changed my mind"))
    await world.event(job_id, JobStopped)

    async def empty() -> bool:
        return await held() == 0

    await eventually(empty, "an empty WORK")


async def test_deleted_work_is_made_again(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    await agent.offered()
    await agent.js.delete_stream(WORK_STREAM)
    assert (await agent.take()).item_id == job_id


async def test_a_dataset_is_offered_for_validation(world: World, agent: Agent) -> None:
    dataset_id = world.dataset_id[:-4] + "beef"
    await world.upload_dataset(dataset_id)
    offer = await agent.take(lane="validate")
    assert offer == WorkOffer(item_id=dataset_id, attempt=1)


async def test_hello_makes_an_agent_known_and_present(world: World, agent: Agent) -> None:
    capabilities = Capabilities(
        profile="cpu", device="a CPU", cpu_cores=2, memory_bytes=2**32, four_bit_kernel=True, versions={}
    )
    hello = Hello(name="node", capabilities=capabilities)
    for _ in range(2):
        reply = await agent.hello(hello)
        assert reply.accepted
        assert reply.pool == "default"
    assert world.events(agent.agent_id)[1:] == [AgentProbed, AgentOnline]
    stranger = Agent(agent.client, world.organization_id, "agt_" + "0" * 32)
    assert not (await stranger.hello(hello)).accepted


async def test_what_an_agent_keeps_for_others_is_not_reckoned_with(world: World, agent: Agent) -> None:
    world.model_id = new_id(Prefix.MODEL)
    await world.ensure_model(MODEL_FACTS.model_copy(update={"shape": SEVEN_BILLION}))
    sparing = node(10).model_copy(update={"reserved_bytes": 2 * 2**30})
    assert (await agent.hello(Hello(name="node", capabilities=sparing))).accepted
    await world.event(agent.agent_id, AgentProbed)
    job_id = await world.request_job()
    refused = await world.event(job_id, JobFailed)
    assert isinstance(refused, JobFailed)
    assert refused.code == "does_not_fit"
    assert "the roomiest agent of the pool has 7.30 GiB for it; lower batch_size" in refused.message
    assert JobQueued not in world.events(job_id)

    assert (await agent.hello(Hello(name="node", capabilities=node(10)))).accepted
    await world.event(agent.agent_id, AgentProbed, count=2)
    assert await world.event(await world.request_job(), JobQueued)


async def test_a_stop_reaches_the_agent_at_once_and_with_its_heartbeat(world: World, agent: Agent) -> None:
    heard: asyncio.Queue[Control] = asyncio.Queue()

    async def hear(message: Msg) -> None:
        heard.put_nowait(Control.model_validate_json(message.data))

    await agent.client.subscribe(control_subject(world.organization_id, agent.agent_id), cb=hear)
    job_id = await world.request_job()
    offer = await agent.take()
    assert (await agent.beat(offer)).desired == "run"
    await agent.report(offer, Accepted())
    await world.event(job_id, AgentAccepted)
    await world.ask(StopJob(job_id=job_id, mode="graceful", reason=""))
    async with asyncio.timeout(10):
        assert (await heard.get()).desired == "stop"
    assert (await agent.beat(offer)).desired == "stop"
    await world.ask(StopJob(job_id=job_id, mode="immediate", reason=""))

    async def immediately() -> bool:
        return (await agent.beat(offer)).desired == "stop_immediately"

    await eventually(immediately, "the hurried stop")
    assert (await agent.beat(WorkOffer(item_id=job_id, attempt=2))).desired == "abandon"


async def test_urls_are_signed_only_for_what_the_attempt_may_touch(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    reply = await agent.claim(job_id, 1)
    assert isinstance(reply.assignment, TrainAssignment)
    manifest = reply.assignment.manifest
    file = {"path": "x/state.bin", "size_bytes": 3, "sha256": "0" * 64}

    def request(**fields: object) -> PresignRequest:
        return PresignRequest.model_validate({"item_id": job_id, "attempt": 1, **fields})

    signed = await agent.presign(
        request(
            download=[manifest.key, reply.assignment.model_listing.key],
            upload=[{"purpose": "checkpoint", "step": 7, "file": file}],
        )
    )
    assert signed.error is None
    assert len(signed.downloads) == 2
    prefix = checkpoint_prefix(world.organization_id, job_id, 1, 7)
    assert signed.uploads[0].object.key == f"{prefix}/x/state.bin"
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.put(signed.uploads[0].url, content=b"more")).status_code == 403
        assert (await http.put(signed.uploads[0].url, content=b"yes")).status_code == 200
    for refused in (
        request(download=[f"{world.organization_id}/objects/sha256/{'0' * 64}"]),
        request(upload=[{"purpose": "validation", "file": file}]),
        request(attempt=2, download=[manifest.key]),
    ):
        answer = await agent.presign(refused)
        assert answer.error is not None
        assert not answer.retryable
    assert offer.attempt == 1
