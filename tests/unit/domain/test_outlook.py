"""What a job would come to, from what the control plane knows: bounds hold, verdicts follow from the room."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_api.domain.outlook import PoolAgent, job_plan
from command_api.domain.reckoning import LEAST, LIKELY, MOST, load, training_rows
from schemas.datasets import Clip, Example, Manifest, one_turn
from schemas.events.agent import Capabilities
from schemas.footprint import Sight
from schemas.job_plan import JobPlan
from schemas.preflight import adapter_parameters
from schemas.training import Hyperparameters
from tests.unit.domain.samples import AGENT, FACTS, MODEL_FACTS, sha
from tests.unit.domain.test_foreseen import SEVEN_BILLION, asked, node

SIGHT = Sight(
    frames_per_step=2, patches_per_token=4, pixels_per_token=784, least_step_tokens=4, most_step_tokens=1000
)
CLIP = Clip(
    path="a.mp4",
    sha256=sha(1),
    size_bytes=1,
    frames=100,
    duration_seconds=10.0,
    width=560,
    height=280,
    codec="h264",
)


def texts(*characters: int) -> Manifest:
    return Manifest(
        clips=(),
        examples=tuple(
            Example(messages=one_turn("a", "b" * (count - 1)), row=row)
            for row, count in enumerate(characters, start=1)
        ),
    )


def agent(capabilities: Capabilities | None, *, online: bool = True) -> PoolAgent:
    return PoolAgent(AGENT, "node", online, capabilities)


def planned(manifest: Manifest, agents: list[PoolAgent], **chosen: object) -> JobPlan:
    return job_plan(asked(**chosen), manifest, FACTS, MODEL_FACTS, agents)


TEXTS = texts(*range(400, 1400, 10))


@pytest.mark.parametrize(
    ("capabilities", "verdict"),
    [(node(64, gpu=80), "fits"), (node(9), "may_fit"), (node(2), "does_not_fit"), (None, "unknown")],
)
def test_the_verdict_follows_from_the_room(capabilities: Capabilities | None, verdict: str) -> None:
    plan = planned(TEXTS, [agent(capabilities)], micro_batch_size=2, compute_dtype="bfloat16")
    (found,) = plan.agents
    assert found.verdict == verdict, found.reason
    if found.preflight is not None and found.peak_bytes is not None and found.seconds is not None:
        assert found.preflight.peak_bytes == sum(part.size_bytes for part in found.preflight.parts)
        assert found.peak_bytes.least <= found.preflight.peak_bytes <= found.peak_bytes.most
        assert found.seconds.least < found.seconds.likely < found.seconds.most


def test_the_refusal_is_that_of_the_admission() -> None:
    assert planned(TEXTS, [agent(node(64, gpu=80)), agent(node(2))]).refusal is None
    refusal = planned(TEXTS, [agent(node(2))]).refusal
    assert refusal is not None
    assert refusal.code == "does_not_fit"
    assert "base weights" in refusal.message


def test_processes_share_a_node_without_gpus_and_multiply_its_gpus() -> None:
    one, two = (planned(TEXTS, [agent(node(64))], processes=count).agents[0] for count in (1, 2))
    assert one.room_bytes is not None
    assert two.room_bytes is not None
    assert two.room_bytes < one.room_bytes / 2
    assert two.seconds == one.seconds
    four = node(64, gpu=80).model_copy(update={"gpus": 4})
    fast, slow = (planned(TEXTS, [agent(four)], processes=count).agents[0] for count in (None, 1))
    assert fast.seconds is not None
    assert slow.seconds is not None
    assert (fast.processes, fast.room_bytes) == (4, slow.room_bytes)
    assert fast.seconds.likely == pytest.approx(slow.seconds.likely / 4)
    assert fast.watt_hours == slow.watt_hours


def test_what_the_operator_keeps_back_is_not_offered() -> None:
    kept = node(64).model_copy(update={"reserved_bytes": 2**30})
    free, reserved = (planned(TEXTS, [agent(each)]).agents[0] for each in (node(64), kept))
    assert free.room_bytes is not None
    assert reserved.room_bytes == free.room_bytes - 2**30


def test_a_clip_counts_by_its_size_and_its_frames() -> None:
    shape = SEVEN_BILLION.model_copy(update={"sight": SIGHT})
    manifest = Manifest(
        clips=(CLIP,), examples=(Example(clip="a.mp4", messages=one_turn("a", "b" * 5), row=1),)
    )
    (row,) = training_rows(manifest, shape, Hyperparameters(frames=8), LEAST)
    assert row.tokens == 4 * 200 + 1
    assert row.patches == 4 * row.tokens - 4
    assert row.pixels == 3 * 8 * 560 * 280
    (faster,) = training_rows(manifest, shape, Hyperparameters(frames_per_second=1.6), LEAST)
    assert faster.patches == 2 * row.patches


@settings(max_examples=40)
@given(
    characters=st.lists(st.integers(2, 3000), min_size=1, max_size=20),
    batch=st.integers(1, 8),
    budget=st.none() | st.integers(16, 4000),
)
def test_what_is_likely_lies_between_the_bounds(
    characters: list[int], batch: int, budget: int | None
) -> None:
    chosen = Hyperparameters(batch_size=batch, tokens_per_micro_batch=budget)
    manifest = texts(*characters)
    rows = [training_rows(manifest, SEVEN_BILLION, chosen, each) for each in (LEAST, LIKELY, MOST)]
    least, likely, most = (load(each, 5, chosen, together=place > 0) for place, each in enumerate(rows))
    assert least.tokens <= likely.tokens + 1  # both were rounded
    assert least.total_tokens <= likely.total_tokens <= most.total_tokens
    if budget is None:
        assert likely.tokens <= most.tokens


@pytest.mark.parametrize(
    ("chosen", "agents", "code"),
    [
        ({}, [], "no_agent_online"),
        ({}, [agent(node(64), online=False)], "no_agent_online"),
        ({"tokens_per_micro_batch": 64}, [agent(node(64))], "row_may_exceed_budget"),
    ],
)
def test_what_people_should_know_before(
    chosen: dict[str, object], agents: list[PoolAgent], code: str
) -> None:
    assert code in {warning.code for warning in planned(TEXTS, agents, **chosen).warnings}


def test_a_row_that_is_longer_than_the_context_is_named_before_anybody_waits_for_it() -> None:
    codes = {each.code for each in planned(texts(*[4 * 600] * 10), [agent(node(64))]).warnings}
    assert "sequence_may_be_too_long" in codes
    assert "sequence_may_be_too_long" not in {
        each.code for each in planned(TEXTS, [agent(node(64))]).warnings
    }


def test_a_trial_of_ranks_keeps_the_adapter_twice_at_the_ranks_it_has_then() -> None:
    plan = planned(TEXTS, [agent(node(64))], rank=8, rank_allocation={"floor_ratio": 0.5})
    assert plan.agents[0].preflight is not None
    parts = {part.name: part.size_bytes for part in plan.agents[0].preflight.parts}
    whole = adapter_parameters(SEVEN_BILLION, Hyperparameters(rank=8)) * (4 + 8)
    assert parts["copies of the adapter"] == round(whole * 1.5)
