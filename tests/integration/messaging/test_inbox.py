"""Reports become events in order, once, and only from the agent that holds the attempt."""

import hashlib

import pytest
from psycopg import AsyncConnection

from command_api.messaging import inbox
from schemas.datasets import Problem
from schemas.events.agent import AgentEnrolled
from schemas.events.dataset import DatasetRejected, DatasetValidationInterrupted
from schemas.events.job import (
    AdapterStored,
    AgentAccepted,
    AttemptFailed,
    CheckpointSaved,
    JobAssigned,
    JobProgressed,
    JobQueued,
    JobSucceeded,
    TrainingFinished,
    TrainingStarted,
    WarningRaised,
)
from schemas.objects import StoredObject, adapter_prefix, checkpoint_prefix, log_prefix
from schemas.settings import NatsSettings, PostgresSettings
from schemas.subjects import DEAD_LETTERS_STREAM, INBOX_DURABLE, REPORTS_STREAM, report_subject
from schemas.work import (
    Accepted,
    AdapterUploaded,
    CheckpointStored,
    DatasetJudged,
    Failed,
    LogStored,
    Report,
    Warned,
    WorkOffer,
)
from tests.integration.messaging.world import (
    ADAPTER_FACTS,
    Agent,
    World,
    agent_of,
    eventually,
    finished,
    progressed,
    started,
)


async def settled(agent: Agent) -> bool:
    """Nothing waits in REPORTS."""
    return (await agent.js.stream_info(REPORTS_STREAM)).state.messages == 0


async def test_a_whole_attempt_is_told_in_order(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.report(offer, Accepted())
    await agent.report(offer, started())
    for step in range(1, 11):
        await agent.report(offer, progressed(step))
    checkpoint = await agent.upload(offer, "checkpoint", "state.bin", b"state", step=10)
    await agent.report(offer, CheckpointStored(step=10, objects=(checkpoint,)))
    await agent.report(offer, finished())
    adapter = await agent.upload(offer, "adapter", "adapter_model.safetensors", b"adapter")
    await agent.report(offer, AdapterUploaded(objects=(adapter,), facts=ADAPTER_FACTS))
    await world.event(job_id, JobSucceeded)
    story = world.events(job_id)
    assert story[story.index(JobAssigned) :] == [
        JobAssigned,
        AgentAccepted,
        TrainingStarted,
        *[JobProgressed] * 10,
        CheckpointSaved,
        TrainingFinished,
        AdapterStored,
        JobSucceeded,
    ]
    steps = [r.event.step for r in world.story(job_id) if isinstance(r.event, JobProgressed)]
    assert steps == list(range(1, 11))
    await eventually(lambda: settled(agent), "an empty REPORTS")
    assert (await agent.beat(offer)).desired == "abandon"


async def test_repeats_make_one_event(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    first = await agent.report(offer, Accepted())
    second = await agent.report(offer, Warned(code="slow", message="slow disk"))
    for report in (first, second, second, first):
        await agent.send(report)
    third = await agent.report(offer, Warned(code="end", message="done"))
    await world.event(job_id, WarningRaised, count=2)
    await agent.send(third)
    await eventually(lambda: settled(agent), "an empty REPORTS")
    assert world.events(job_id).count(AgentAccepted) == 1
    warnings = [r.event.code for r in world.story(job_id) if isinstance(r.event, WarningRaised)]
    assert warnings == ["slow", "end"]


async def test_a_gap_holds_what_follows_until_it_fills(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.report(offer, Accepted(), sequence=1)
    await world.event(job_id, AgentAccepted)
    await agent.report(offer, progressed(2), sequence=4)
    await agent.report(offer, progressed(1), sequence=3)

    async def held() -> bool:
        info = await agent.js.consumer_info(REPORTS_STREAM, INBOX_DURABLE)
        return info.num_ack_pending == 2

    await eventually(held, "two reports that wait")
    assert JobProgressed not in world.events(job_id)
    await agent.report(offer, started(), sequence=2)
    await world.event(job_id, JobProgressed, count=2)
    steps = [r.event.step for r in world.story(job_id) if isinstance(r.event, JobProgressed)]
    assert steps == [1, 2]


async def test_a_gap_that_never_fills_fails_the_attempt(
    world: World, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "GAP_SECONDS", 1.0)
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.report(offer, Accepted(), sequence=1)
    await agent.report(offer, progressed(2), sequence=4)
    await agent.report(offer, progressed(1), sequence=3)
    failed = await world.event(job_id, AttemptFailed)
    assert isinstance(failed, AttemptFailed)
    assert failed.code == "reports_lost"
    await eventually(lambda: settled(agent), "an empty REPORTS")
    assert world.events(job_id)[-2:] == [AttemptFailed, JobQueued]


async def test_only_the_holder_is_believed(world: World, agent: Agent, nats: NatsSettings) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    async with agent_of(world, nats) as other:
        await other.report(offer, Accepted())
        await other.report(offer, Failed(code="oom", message="ha", retryable=False))
        await eventually(lambda: settled(agent), "an empty REPORTS")
    liar = Agent(agent.client, "org_" + "0" * 32, agent.agent_id)
    await liar.report(offer, Accepted())
    await eventually(lambda: settled(agent), "an empty REPORTS")
    assert world.events(job_id)[-1] is JobAssigned
    await agent.report(offer, Accepted())
    await world.event(job_id, AgentAccepted)


async def test_a_report_that_cannot_be_read_is_put_aside(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    subject = report_subject(world.organization_id, agent.agent_id, job_id)
    await agent.js.publish(subject, b'{"item_id": 7}')
    await agent.report(offer, Accepted())
    await world.event(job_id, AgentAccepted)

    async def aside() -> bool:
        return (await agent.js.stream_info(DEAD_LETTERS_STREAM)).state.messages == 1

    await eventually(aside, "the dead letter")
    letter = await agent.js.get_msg(DEAD_LETTERS_STREAM, 1)
    assert letter.data == b'{"item_id": 7}'
    assert letter.headers is not None
    assert letter.headers["Kinora-Subject"] == subject
    await eventually(lambda: settled(agent), "an empty REPORTS")


async def test_a_report_as_large_as_a_message_may_be_holds_up_nobody(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    subject = report_subject(world.organization_id, agent.agent_id, job_id)
    # With what is said about it in the dead letters' headers it would not fit any more.
    await agent.js.publish(subject, b"x" * (agent.client.max_payload - 300))
    await agent.report(offer, Accepted())
    await world.event(job_id, AgentAccepted)
    await eventually(lambda: settled(agent), "an empty REPORTS")
    letter = await agent.js.get_msg(DEAD_LETTERS_STREAM, 1)
    assert letter.headers is not None
    assert letter.headers["Kinora-Bytes"] == str(agent.client.max_payload - 300)


async def test_a_stream_that_cannot_be_folded_holds_up_no_other(
    world: World, agent: Agent, database: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "TRIES", 2)
    strange, healthy = await world.request_job(), await world.request_job()
    offers = {(await agent.take()).item_id for _ in range(2)}
    assert offers == {strange, healthy}
    async with await AsyncConnection.connect(database.conninfo()) as connection:
        await connection.execute(
            """
            INSERT INTO kinora_events (originator_id, originator_version, topic, state, event_id, stream_id,
                                       organization_id, actor, correlation_id, causation_id, recorded_at)
            SELECT originator_id, originator_version + 1, 'kinora.job.novelty',
                   convert_to(replace(convert_from(state, 'UTF8'), topic, 'kinora.job.novelty'), 'UTF8'),
                   'evt_novelty', stream_id, organization_id, actor, correlation_id, causation_id, recorded_at
              FROM kinora_events WHERE stream_id = %s ORDER BY originator_version DESC LIMIT 1
            """,
            (strange,),
        )
    for job_id in (strange, healthy):
        await agent.report(WorkOffer(item_id=job_id, attempt=1), Accepted())
    await world.event(healthy, AgentAccepted)
    await eventually(lambda: settled(agent), "an empty REPORTS")
    assert (await agent.js.stream_info(DEAD_LETTERS_STREAM)).state.messages == 1


async def test_artifacts_that_are_not_there_fail_the_attempt(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.report(offer, Accepted())
    await agent.report(offer, started())
    key = f"{checkpoint_prefix(world.organization_id, job_id, 1, 5)}/state.bin"
    missing = StoredObject(path="state.bin", key=key, size_bytes=5, sha256="0" * 64)
    await agent.report(offer, CheckpointStored(step=5, objects=(missing,)))
    failed = await world.event(job_id, AttemptFailed)
    assert isinstance(failed, AttemptFailed)
    assert failed.code == "artifact_missing"
    queued = await world.event(job_id, JobQueued, count=2)
    assert isinstance(queued, JobQueued)
    assert (queued.attempt, queued.resume_step) == (2, 0)


async def test_artifacts_of_somebody_else_fail_the_attempt(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.report(offer, Accepted())
    await agent.report(offer, started())
    await agent.report(offer, finished())
    foreign = f"{adapter_prefix(world.organization_id, 'job_' + '0' * 32, 1)}/adapter_model.safetensors"
    await world.store.put_bytes(foreign, b"theirs")
    claimed = StoredObject(
        path="adapter_model.safetensors",
        key=foreign,
        size_bytes=6,
        sha256=hashlib.sha256(b"theirs").hexdigest(),
    )
    await agent.report(offer, AdapterUploaded(objects=(claimed,), facts=ADAPTER_FACTS))
    failed = await world.event(job_id, AttemptFailed)
    assert isinstance(failed, AttemptFailed)
    assert failed.code == "artifact_missing"
    assert JobSucceeded not in world.events(job_id)


async def test_a_lost_log_is_only_a_warning(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.report(offer, Accepted())
    key = f"{log_prefix(world.organization_id, job_id, 1)}/1.log"
    missing = StoredObject(path="1.log", key=key, size_bytes=5, sha256="0" * 64)
    await agent.report(offer, LogStored(segment=1, content="log", lines=1, object=missing))
    warning = await world.event(job_id, WarningRaised)
    assert isinstance(warning, WarningRaised)
    assert warning.code == "log_missing"


async def test_a_report_out_of_place_does_not_hold_up_the_next(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.report(offer, Accepted())
    await agent.report(offer, finished())
    await agent.report(offer, started())
    await agent.report(offer, progressed(1))
    await world.event(job_id, JobProgressed)
    assert TrainingFinished not in world.events(job_id)


async def test_a_validation_is_tried_again_and_ends_with_a_verdict(world: World, agent: Agent) -> None:
    dataset_id = world.dataset_id[:-4] + "beef"
    await world.upload_dataset(dataset_id)
    first = await agent.take(lane="validate")
    await agent.report(first, Failed(code="internal", message="engine died", retryable=True))
    await world.event(dataset_id, DatasetValidationInterrupted)
    second = await agent.take(lane="validate")
    assert second.attempt == 2
    problem = Problem(code="missing_clip", where="captions.jsonl:1", message="a.mp4 is missing; add it")
    await agent.report(second, DatasetJudged(problems=(problem,)))
    await world.event(dataset_id, DatasetRejected)


async def test_a_deleted_consumer_is_made_again(world: World, agent: Agent) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.js.delete_consumer(REPORTS_STREAM, INBOX_DURABLE)
    await agent.report(offer, Accepted())
    await world.event(job_id, AgentAccepted)
    assert world.events(agent.agent_id)[0] is AgentEnrolled


async def test_reports_have_one_identity_whatever_they_say(world: World, agent: Agent) -> None:
    """An agent that numbers two different reports alike gets the first one only."""
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.report(offer, Accepted(), sequence=1)
    await world.event(job_id, AgentAccepted)
    report = await agent.report(offer, Failed(code="oom", message="no", retryable=False), sequence=1)
    assert isinstance(report, Report)
    await eventually(lambda: settled(agent), "an empty REPORTS")
    assert world.events(job_id)[-1] is AgentAccepted
