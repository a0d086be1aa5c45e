import pytest

from command_api.domain.errors import Refused
from command_api.domain.job_reports import output_model_id
from command_api.handlers.base import StreamEvents
from schemas import work
from schemas.commands.job import ReportAttempt
from schemas.events import Event
from schemas.events.dataset import DatasetRejected, DatasetValidationInterrupted
from schemas.events.job import AdapterStored, JobSucceeded
from schemas.events.model import AdapterRegistered
from schemas.objects import (
    StoredObject,
    adapter_prefix,
    checkpoint_prefix,
    content_sha256,
    log_prefix,
    validation_prefix,
)
from tests.unit.domain import job_story as story
from tests.unit.domain.samples import (
    ADAPTER_FACTS,
    AGENT,
    DATASET,
    DATASET_VALIDATING,
    FACTS,
    JOB,
    MODEL,
    MODEL_FACTS,
    MODEL_VALIDATED,
    MODEL_VALIDATING,
    NOON,
    ORGANIZATION,
    OTHER_AGENT,
    PROBLEM,
    USER,
    sha,
    stored,
)
from tests.unit.handlers.given_streams import GivenStreams


def report(item_id: str, body: work.ReportBody, agent_id: str = AGENT) -> ReportAttempt:
    said = work.Report(item_id=item_id, attempt=1, sequence=1, occurred_at=NOON, body=body)
    return ReportAttempt(agent_id=agent_id, report=said)


def under(prefix: str, path: str) -> StoredObject:
    return stored(path, key=f"{prefix}/{path}")


def events_of(item_id: str, history: tuple[Event, ...], body: work.ReportBody) -> list[Event]:
    """What one report adds to its item's stream, when it adds to that stream alone."""
    [change] = GivenStreams({item_id: history}).handle(report(item_id, body))
    assert (change.stream_id, change.expected_version) == (item_id, len(history))
    return list(change.events)


def refusal(item_id: str, history: tuple[Event, ...], body: work.ReportBody, agent_id: str = AGENT) -> str:
    with pytest.raises(Refused) as caught:
        GivenStreams({item_id: history}).handle(report(item_id, body, agent_id))
    return caught.value.code


def test_the_adapter_becomes_a_model_in_the_transaction_that_ends_the_job() -> None:
    objects = (under(adapter_prefix(ORGANIZATION, JOB, 1), "adapter_model.safetensors"),)
    body = work.AdapterUploaded(objects=objects, facts=ADAPTER_FACTS)
    model_id = output_model_id(JOB)
    assert GivenStreams({JOB: story.FINALIZING}).handle(report(JOB, body)) == [
        StreamEvents(
            model_id,
            0,
            [
                AdapterRegistered(
                    name="first",
                    owner_id=USER,
                    job_id=JOB,
                    base_model_id=MODEL,
                    objects=objects,
                    facts=ADAPTER_FACTS,
                    content_sha256=content_sha256(objects),
                )
            ],
        ),
        StreamEvents(
            JOB,
            len(story.FINALIZING),
            [
                AdapterStored(attempt=1, objects=objects, facts=ADAPTER_FACTS),
                JobSucceeded(attempt=1, output_model_id=model_id),
            ],
        ),
    ]


def test_a_partial_adapter_is_kept_with_the_job_alone() -> None:
    objects = (under(adapter_prefix(ORGANIZATION, JOB, 1), "adapter_model.safetensors"),)
    body = work.AdapterUploaded(objects=objects, facts=ADAPTER_FACTS, partial=True)
    stored_event = AdapterStored(attempt=1, objects=objects, facts=ADAPTER_FACTS, partial=True)
    assert events_of(JOB, story.STOPPING, body) == [stored_event]


ELSEWHERE = (
    "org_ffffffffffffffffffffffffffffffff/objects/sha256/secret",
    f"{checkpoint_prefix(ORGANIZATION, JOB, 2, 5)}/state.safetensors",
    f"{checkpoint_prefix(ORGANIZATION, JOB, 1, 5)}/../../../../secret",
)


@pytest.mark.parametrize("key", ELSEWHERE)
def test_an_agent_can_report_only_what_lies_under_its_attempt(key: str) -> None:
    foreign = stored("state.safetensors", key=key)
    bodies: list[work.ReportBody] = [
        work.CheckpointStored(step=5, objects=(foreign,)),
        work.AdapterUploaded(objects=(foreign,), facts=ADAPTER_FACTS),
        work.LogStored(segment=1, content="log", lines=1, object=foreign),
    ]
    for body in bodies:
        assert refusal(JOB, story.RUNNING, body) == "object_outside_attempt"
    judged = work.DatasetJudged(facts=FACTS, manifest=foreign)
    assert refusal(DATASET, DATASET_VALIDATING, judged) == "object_outside_attempt"


def test_what_lies_under_the_attempt_is_noted() -> None:
    checkpoint = under(checkpoint_prefix(ORGANIZATION, JOB, 1, 5), "state.safetensors")
    assert events_of(JOB, story.RUNNING, work.CheckpointStored(step=5, objects=(checkpoint,)))
    log = under(log_prefix(ORGANIZATION, JOB, 1), "1.log")
    assert events_of(JOB, story.RUNNING, work.LogStored(segment=1, content="log", lines=1, object=log))


def test_a_dataset_is_judged() -> None:
    manifest = under(validation_prefix(ORGANIZATION, DATASET, 1), "manifest.json")
    [validated] = events_of(DATASET, DATASET_VALIDATING, work.DatasetJudged(facts=FACTS, manifest=manifest))
    assert validated.model_dump()["content_sha256"] == manifest.sha256
    rejected = events_of(DATASET, DATASET_VALIDATING, work.DatasetJudged(problems=(PROBLEM,)))
    assert rejected == [DatasetRejected(attempt=1, problems=(PROBLEM,))]


def test_a_model_is_judged() -> None:
    judged = work.ModelJudged(facts=MODEL_FACTS, content_sha256=sha(4))
    assert events_of(MODEL, MODEL_VALIDATING, judged) == [MODEL_VALIDATED]


@pytest.mark.parametrize(
    ("body", "reason", "detail"),
    [
        (story.RELEASED, "released", "shutting down"),
        (story.DECLINED, "declined", "too little memory"),
        (story.CRASHED, "failed", "oom: out of memory"),
    ],
)
def test_a_validation_without_a_verdict_waits_again(body: work.ReportBody, reason: str, detail: str) -> None:
    interrupted = DatasetValidationInterrupted.model_validate(
        {"attempt": 1, "reason": reason, "detail": detail}
    )
    assert events_of(DATASET, DATASET_VALIDATING, body) == [interrupted]
    [of_model] = events_of(MODEL, MODEL_VALIDATING, body)
    assert of_model.model_dump() == interrupted.model_dump()


@pytest.mark.parametrize(("item_id", "history"), [(DATASET, DATASET_VALIDATING), (MODEL, MODEL_VALIDATING)])
@pytest.mark.parametrize(
    "body", [story.ACCEPTED, story.CRASHED, work.DatasetJudged(problems=(PROBLEM,))], ids=lambda b: b.kind
)
def test_only_the_holder_of_a_validation_is_believed(
    item_id: str, history: tuple[Event, ...], body: work.ReportBody
) -> None:
    assert refusal(item_id, history, body, OTHER_AGENT) == "attempt_not_held"


def test_other_reports_of_a_validation_leave_no_event() -> None:
    assert events_of(DATASET, DATASET_VALIDATING, story.ACCEPTED) == []
    assert events_of(MODEL, MODEL_VALIDATING, story.WARNED) == []
