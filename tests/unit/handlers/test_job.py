from dataclasses import replace

import pytest

from command_api.domain.errors import Refused
from command_api.handlers.base import Context, StreamEvents
from schemas.events.agent import AgentEnrolled
from schemas.events.job import JobAssigned
from tests.unit.domain import job_story as story
from tests.unit.domain.job_story import claim
from tests.unit.domain.samples import (
    AGENT,
    DATASET,
    DATASET_READY,
    JOB,
    JOB_REQUESTED,
    MODEL,
    MODEL_READY,
    OTHER_AGENT,
    identifier,
)
from tests.unit.domain.test_job_request import REQUEST
from tests.unit.handlers.given_streams import CONTEXT, GivenStreams

ENROLLED = AgentEnrolled(name="node", pool="default")
INPUTS = {DATASET: DATASET_READY, MODEL: MODEL_READY}
ELSEWHERE = identifier("org", 9)


def test_a_request_pins_dataset_and_model() -> None:
    assert GivenStreams(INPUTS).handle(REQUEST) == [StreamEvents(JOB, 0, [JOB_REQUESTED])]


@pytest.mark.parametrize("foreign", [DATASET, MODEL])
def test_inputs_of_another_organization_do_not_exist_even_for_the_control_plane(foreign: str) -> None:
    system = replace(Context.system("test"), organization_id=CONTEXT.organization_id)
    streams = GivenStreams(INPUTS, {foreign: ELSEWHERE})
    with pytest.raises(Refused) as caught:
        streams.handle(REQUEST, system)
    assert caught.value.code == "not_found"


def test_a_claim_is_granted_to_an_enrolled_agent_of_the_pool() -> None:
    changes = GivenStreams({JOB: story.QUEUED, AGENT: (ENROLLED,)}).handle(claim())
    assert changes == [StreamEvents(JOB, len(story.QUEUED), [JobAssigned(attempt=1, agent_id=AGENT)])]


def test_strangers_and_agents_of_other_pools_get_nothing() -> None:
    streams = GivenStreams({JOB: story.QUEUED, AGENT: (AgentEnrolled(name="node", pool="gpus"),)})
    with pytest.raises(Refused) as caught:
        streams.handle(claim())
    assert caught.value.code == "other_pool"
    with pytest.raises(Refused) as caught:
        streams.handle(claim(agent_id=OTHER_AGENT))
    assert caught.value.code == "not_found"
