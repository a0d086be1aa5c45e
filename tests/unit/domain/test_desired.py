import pytest

from command_api.domain.aggregates import AGGREGATES, aggregate_of
from command_api.domain.desired import desired_state
from schemas.events.job import JobStopRequested
from schemas.ids import Prefix
from schemas.job_status import HELD_PHASES, PHASES, JobPhase
from schemas.work import DesiredState
from tests.unit.domain import job_story as story
from tests.unit.domain.job_story import HISTORIES
from tests.unit.domain.samples import (
    AGENT,
    DATASET,
    DATASET_READY,
    DATASET_VALIDATING,
    MODEL_VALIDATING,
    OTHER_AGENT,
    WORKSPACE,
)


@pytest.mark.parametrize("phase", PHASES)
def test_only_the_holder_of_a_job_goes_on(phase: JobPhase) -> None:
    state = story.job.given(*HISTORIES[phase]).state
    expected: DesiredState = "run" if phase in HELD_PHASES else "abandon"
    if phase == "stopping":
        expected = "stop"
    assert desired_state(state, AGENT, 1) == expected
    assert desired_state(state, OTHER_AGENT, 1) == "abandon"
    assert desired_state(state, AGENT, 2) == "abandon"


def test_an_immediate_stop_says_so() -> None:
    hurried = (*story.RUNNING, JobStopRequested(mode="immediate", reason="now"))
    assert desired_state(story.job.given(*hurried).state, AGENT, 1) == "stop_immediately"


def test_only_the_holder_of_a_validation_goes_on() -> None:
    for prefix, history in ((Prefix.DATASET, DATASET_VALIDATING), (Prefix.MODEL, MODEL_VALIDATING)):
        state = AGGREGATES[prefix].fold(history)
        assert desired_state(state, AGENT, 1) == "run"
        assert desired_state(state, OTHER_AGENT, 1) == "abandon"
        assert desired_state(state, AGENT, 2) == "abandon"
    assert desired_state(AGGREGATES[Prefix.DATASET].fold(DATASET_READY), AGENT, 1) == "abandon"


def test_a_stream_is_found_by_its_prefix() -> None:
    assert aggregate_of(DATASET) is AGGREGATES[Prefix.DATASET]
    with pytest.raises(ValueError, match="names no stream"):
        aggregate_of(WORKSPACE)
