"""`POST /jobs/plan`: what would happen, and that nothing does."""

import pytest

from schemas.commands.agent import MarkAgentOnline, ReportCapabilities
from schemas.datasets import Example, Manifest, one_turn
from schemas.ids import Prefix, new_id
from tests.integration.api.running import Person, Visit
from tests.integration.api.stories import Agent, ready_inputs
from tests.unit.domain.test_foreseen import SEVEN_BILLION, node

MANIFEST = Manifest(
    clips=(),
    examples=tuple(Example(messages=one_turn("a", "b" * 400 + str(row)), row=row) for row in range(1, 41)),
)


async def test_a_plan_says_what_would_happen_and_records_nothing(
    visit: Visit, ada: Person, bob: Person
) -> None:
    inputs = await ready_inputs(visit, ada, MANIFEST, SEVEN_BILLION)
    agent = await Agent.enrolled(visit, ada)
    await agent.execute(ReportCapabilities(agent_id=agent.agent_id, capabilities=node(64, gpu=80)))
    position = await agent.execute(MarkAgentOnline(agent_id=agent.agent_id))
    await ada.get(f"/agents/{agent.agent_id}", params={"min_position": position})
    await Agent.enrolled(visit, bob)
    before = await visit.service.parts.reader.head()
    jobs = (await ada.get("/jobs")).json()["data"]
    body = {
        "dataset_id": inputs.dataset_id,
        "model_id": inputs.model_id,
        "hyperparameters": {"batch_size": 4, "frames": 2},
    }
    answer = await ada.post("/jobs/plan", body)
    plan = answer.json()
    assert answer.status_code == 200, answer.text
    assert (plan["total_steps"], plan["training_examples"], plan["held_out_examples"]) == (24, 32, 8)
    assert plan["tokens"]["least"] < plan["tokens"]["likely"] < plan["tokens"]["most"]
    assert (plan["hyperparameters"]["batch_size"], plan["hyperparameters"]["rank"]) == (4, 8)
    found = {each["agent_id"]: each for each in plan["agents"]}
    assert found[agent.agent_id]["verdict"] == "fits"
    assert found[agent.agent_id]["compute_dtype"] == "bfloat16"
    parts = found[agent.agent_id]["preflight"]["parts"]
    assert sum(part["size_bytes"] for part in parts) == found[agent.agent_id]["preflight"]["peak_bytes"]
    shown = (await bob.get("/agents")).json()["data"]
    assert not {each["id"] for each in shown} & set(found)
    assert plan["refusal"] is None
    assert await visit.service.parts.reader.head() == before
    assert (await ada.get("/jobs")).json()["data"] == jobs
    there = await ada.post("/jobs/plan", body | {"pool": "another"})
    assert [each["code"] for each in there.json()["warnings"]] == ["no_agent_online"]


@pytest.mark.parametrize(
    ("changes", "status", "code", "pointer"),
    [
        ({"hyperparameters": {"rank": 0}}, 422, "invalid_request", "/hyperparameters/rank"),
        ({"hyperparameters": {"frames": 9}}, 422, "frames_exceed_clip", "/hyperparameters/frames"),
        ({"colour": "red"}, 422, "invalid_request", "/colour"),
        ({"model_id": new_id(Prefix.MODEL)}, 404, "not_found", None),
        ({}, 409, "invalid_dataset", None),
    ],
)
async def test_what_cannot_be_requested_cannot_be_planned(
    visit: Visit, ada: Person, changes: dict[str, object], status: int, code: str, pointer: str | None
) -> None:
    inputs = await ready_inputs(visit, ada)  # whose manifest is empty
    body = {"dataset_id": inputs.dataset_id, "model_id": inputs.model_id} | changes
    answer = await ada.post("/jobs/plan", body)
    problem = answer.json()
    assert answer.status_code == status, answer.text
    if pointer is None:
        assert problem["code"] == code
    else:
        assert pointer in {error["pointer"] for error in problem["errors"]}
        assert code in {problem["code"], *(error["code"] for error in problem["errors"])}
    assert problem["detail"]
