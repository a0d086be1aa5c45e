import pytest

from command_api.domain import dataset, job, model
from command_api.domain.aggregates import AGGREGATES
from command_api.domain.errors import Refused
from command_api.domain.job_request import decide_request
from schemas.commands.job import RequestJob
from schemas.events import Event
from schemas.events.dataset import DatasetDeleted, DatasetRejected
from schemas.events.model import AdapterRegistered, ModelDeleted, ModelRejected
from schemas.ids import Prefix
from schemas.training import Hyperparameters
from tests.unit.domain.samples import (
    ADAPTER_FACTS,
    DATASET,
    DATASET_READY,
    DATASET_REGISTERED,
    DATASET_UPLOADED,
    DATASET_VALIDATING,
    JOB,
    JOB_REQUESTED,
    MODEL,
    MODEL_READY,
    MODEL_REGISTERED,
    MODEL_UPLOADED,
    MODEL_VALIDATING,
    PROBLEM,
    USER,
    sha,
)

Events = tuple[Event, ...]

REQUEST = RequestJob(
    job_id=JOB,
    name="first",
    owner_id=USER,
    dataset_id=DATASET,
    model_id=MODEL,
    hyperparameters=Hyperparameters(),
    pool="default",
    priority="normal",
    labels={},
    max_attempts=3,
)
ADAPTER = AdapterRegistered(
    name="tuned",
    owner_id=USER,
    job_id=JOB,
    base_model_id=MODEL,
    objects=(),
    facts=ADAPTER_FACTS,
    content_sha256=sha(9),
)


def decide(
    command: RequestJob = REQUEST,
    *,
    job_events: Events = (),
    dataset_events: Events = DATASET_READY,
    model_events: Events = MODEL_READY,
) -> list[Event]:
    job_state: job.State = AGGREGATES[Prefix.JOB].fold(job_events)
    dataset_state: dataset.State = AGGREGATES[Prefix.DATASET].fold(dataset_events)
    model_state: model.State = AGGREGATES[Prefix.MODEL].fold(model_events)
    return decide_request(job_state, dataset_state, model_state, command)


def test_both_inputs_are_pinned_by_content() -> None:
    assert decide() == [JOB_REQUESTED]


def test_a_repeat_makes_no_second_request_even_when_the_inputs_are_gone() -> None:
    gone = (*DATASET_READY, DatasetDeleted())
    assert decide(job_events=(JOB_REQUESTED,), dataset_events=gone) == []


def test_an_id_is_never_used_for_another_job() -> None:
    with pytest.raises(Refused) as caught:
        decide(REQUEST.model_copy(update={"priority": "high"}), job_events=(JOB_REQUESTED,))
    assert caught.value.code == "job_exists"


@pytest.mark.parametrize(
    ("dataset_events", "code"),
    [
        ((), "not_found"),
        ((DATASET_REGISTERED,), "dataset_not_ready"),
        (DATASET_UPLOADED, "dataset_not_ready"),
        (DATASET_VALIDATING, "dataset_not_ready"),
        ((*DATASET_VALIDATING, DatasetRejected(attempt=1, problems=(PROBLEM,))), "dataset_rejected"),
        ((*DATASET_READY, DatasetDeleted()), "dataset_deleted"),
    ],
)
def test_the_dataset_must_be_ready(dataset_events: Events, code: str) -> None:
    with pytest.raises(Refused) as caught:
        decide(dataset_events=dataset_events)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("model_events", "code"),
    [
        ((), "not_found"),
        ((MODEL_REGISTERED,), "model_not_ready"),
        (MODEL_UPLOADED, "model_not_ready"),
        (MODEL_VALIDATING, "model_not_ready"),
        ((*MODEL_VALIDATING, ModelRejected(attempt=1, problems=(PROBLEM,))), "model_rejected"),
        ((*MODEL_READY, ModelDeleted()), "model_deleted"),
        ((ADAPTER,), "not_a_base_model"),
    ],
)
def test_the_model_must_be_a_ready_base_model(model_events: Events, code: str) -> None:
    with pytest.raises(Refused) as caught:
        decide(model_events=model_events)
    assert caught.value.code == code


def test_every_clip_must_have_the_frames_asked_for() -> None:
    assert decide(REQUEST.model_copy(update={"hyperparameters": Hyperparameters(frames=8)}))
    with pytest.raises(Refused) as caught:
        decide(REQUEST.model_copy(update={"hyperparameters": Hyperparameters(frames=9)}))
    assert caught.value.code == "frames_exceed_clip"
    assert [error.pointer for error in caught.value.errors] == ["/hyperparameters/frames"]
    assert "9" in caught.value.message
    assert "8" in caught.value.message
