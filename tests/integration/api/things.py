"""Things in every state that a bad request may name."""

from dataclasses import dataclass, field
from uuid import uuid4

from schemas import work
from schemas.commands.dataset import ClaimDatasetValidation
from schemas.commands.model import ClaimModelValidation
from schemas.datasets import Problem
from tests.integration.api.running import Person, Visit
from tests.integration.api.stories import (
    Agent,
    Inputs,
    ready_inputs,
    register,
    request_job,
    start_training,
    train,
    uploaded,
)


@dataclass(frozen=True)
class Things:
    """What bad requests may name: things in every state, of one organization."""

    inputs: Inputs
    stranger: Inputs
    """Of another organization."""
    waiting_job: str
    finished_job: str
    adapter: str
    others_job: str
    used_key: str
    datasets: dict[str, str] = field(default_factory=dict)
    """By their state."""
    models: dict[str, str] = field(default_factory=dict)


async def make_things(visit: Visit, ada: Person, bob: Person) -> Things:
    inputs, stranger = await ready_inputs(visit, ada), await ready_inputs(visit, bob)
    agent = await Agent.enrolled(visit, ada)
    finished = (await request_job(ada, inputs))["id"]
    await start_training(agent, finished)
    end = await train(agent, finished)
    shown = (await ada.get(f"/jobs/{finished}", params={"min_position": end})).json()
    key = uuid4().hex
    body = {"dataset_id": inputs.dataset_id, "model_id": inputs.model_id, "name": "first"}
    waiting = (await ada.post("/jobs", body, key=key)).json()["id"]
    things = Things(
        inputs=inputs,
        stranger=stranger,
        waiting_job=waiting,
        finished_job=finished,
        adapter=shown["output_model_id"],
        others_job=(await request_job(bob, stranger))["id"],
        used_key=key,
    )
    for kind, states in (("datasets", things.datasets), ("models", things.models)):
        files = {"a": uuid4().bytes}
        states["uploading"] = (await register(ada, kind, files))["id"]
        for state in ("uploaded", "validating", "rejected", "deleted"):
            states[state] = (await uploaded(ada, kind, files))["id"]
        await ada.delete(f"/{kind}/{states['deleted']}")
    problem = Problem(code="undecodable_clip", where="a.mp4", message="a.mp4 cannot be decoded; convert it")
    for state in ("validating", "rejected"):
        ids = {"agent_id": agent.agent_id, "attempt": 1}
        await agent.execute(ClaimDatasetValidation(dataset_id=things.datasets[state], **ids))
        await agent.execute(ClaimModelValidation(model_id=things.models[state], **ids))
    await agent.report(things.datasets["rejected"], work.DatasetJudged(problems=(problem,)))
    await agent.report(things.models["rejected"], work.ModelJudged(problems=(problem,)))
    return things
