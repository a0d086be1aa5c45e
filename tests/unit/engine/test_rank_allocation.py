"""Ranks are dealt out within budget, floors and caps, best gain per parameter first, at the planned steps."""

import math
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_engine.adapters.ranks.allocation import RETURNS, Layer, allocate, parameters
from qlora_engine.adapters.ranks.rounds import Rounds, not_planned, planned_rounds
from schemas.adapters import MODALITIES, Modality, RankAllocation
from schemas.training import Hyperparameters


@st.composite
def layer(draw: st.DrawFn) -> Layer:
    rank = draw(st.integers(1, 3))
    return Layer(
        part=draw(st.sampled_from(MODALITIES)),
        cost=draw(st.integers(1, 9)),
        rank=rank,
        cap=rank + draw(st.integers(0, 6)),
        worth=float(draw(st.integers(0, 40))),
    )


LAYERS = st.dictionaries(st.text("abc", min_size=1, max_size=3), layer(), min_size=1, max_size=6)
FLOORS = st.dictionaries(st.sampled_from(MODALITIES), st.integers(0, 60))


def before(layers: dict[str, Layer]) -> dict[str, int]:
    return {name: each.rank for name, each in layers.items()}


def part_of(part: Modality, layers: dict[str, Layer]) -> dict[str, Layer]:
    return {name: each for name, each in layers.items() if each.part == part}


@given(LAYERS, st.integers(0, 120), FLOORS)
def test_budget_floors_and_caps_hold_and_nothing_is_left_that_fits(
    layers: dict[str, Layer], extra: int, floors: dict[Modality, int]
) -> None:
    budget = parameters(layers, before(layers)) + extra
    ranks = allocate(layers, budget, floors)
    left = budget - parameters(layers, ranks)
    assert ranks.keys() == layers.keys()
    assert left >= 0
    for name, each in layers.items():
        assert each.rank <= ranks[name] <= each.cap
        assert ranks[name] == each.cap or each.cost > left


@given(LAYERS, st.integers(0, 120), st.sampled_from(MODALITIES))
def test_a_part_reaches_its_floor_if_budget_and_caps_allow(
    layers: dict[str, Layer], extra: int, part: Modality
) -> None:
    inside = part_of(part, layers)
    most = parameters(inside, {name: each.cap for name, each in inside.items()})
    have = parameters(inside, before(inside))
    floor = min(most, have + extra)
    ranks = allocate(layers, parameters(layers, before(layers)) + extra, {part: floor})
    dearest = max((each.cost for each in inside.values()), default=0)
    assert parameters(inside, ranks) > floor - max(1, dearest)


@given(LAYERS, st.integers(0, 40))
def test_no_choice_gains_more_with_one_rank_less_to_give(layers: dict[str, Layer], extra: int) -> None:
    """As near to the optimum as greed comes for gains that fall (Dantzig 1957); all choices are compared."""
    layers = dict(list(layers.items())[:3])
    budget = parameters(layers, before(layers)) + extra - max(each.cost for each in layers.values())

    def gain(chosen: dict[str, int]) -> float:
        return sum(each.worth * chosen[name] ** RETURNS for name, each in layers.items())

    possible = product(*(range(each.rank, each.cap + 1) for each in layers.values()))
    choices = [dict(zip(layers, chosen, strict=True)) for chosen in possible]
    best = max(
        (gain(chosen) for chosen in choices if parameters(layers, chosen) <= budget), default=-math.inf
    )
    ranks = allocate(layers, parameters(layers, before(layers)) + extra)
    assert gain(ranks) >= best - 1e-9


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 40), st.floats(0, 9))
def test_equal_layers_get_equal_ranks(count: int, cost: int, extra: int, gain: float) -> None:
    layers = {f"layer{number}": Layer("text", cost, 1, 64, gain) for number in range(count)}
    ranks = allocate(layers, count * cost + extra)
    assert max(ranks.values()) - min(ranks.values()) <= 1


def test_who_is_clearly_ahead_gets_what_the_floors_leave_and_who_is_close_shares_it() -> None:
    layers = {
        "tower.q": Layer("vision", 100, 2, 64, 3.0),
        "bridge": Layer("connector", 1000, 2, 64, 25.0),
        "layers.0.q": Layer("text", 100, 2, 64, 0.05),
    }
    budget = parameters(layers, dict.fromkeys(layers, 12))
    assert allocate(layers, budget) == {"tower.q": 22, "bridge": 12, "layers.0.q": 2}
    held = allocate(layers, budget, {"connector": 11_000, "text": 1000})
    assert held == {"tower.q": 24, "bridge": 11, "layers.0.q": 10}


ROUNDS = Rounds(explore=11, count=2, trial=1, judged=4, floor_rank=1, rank=8)


def test_the_second_half_of_the_steps_before_each_round_is_watched() -> None:
    assert [step for step in range(41) if ROUNDS.watches(step)] == [*range(7, 12), *range(18, 23)]
    assert [step for step in range(41) if ROUNDS.after(step)] == [11, 22]
    assert [ROUNDS.even_rank(number) for number in (1, 2)] == [4, 8]


@given(
    st.integers(1, 20_000), st.integers(1, 64),
    st.builds(RankAllocation, explore_ratio=st.floats(0.01, 0.25), rounds=st.integers(1, 2)),
)  # fmt: skip
def test_a_trial_costs_its_share_at_most_and_the_training_goes_on_after_it(
    steps: int, batch: int, wish: RankAllocation
) -> None:
    chosen = Hyperparameters(batch_size=batch, rank_allocation=wish)
    rounds = planned_rounds(chosen, steps, held_out=8)
    if rounds is None:
        assert steps < 9 or wish.explore_ratio * wish.rounds > 0.7
        return
    assert rounds.explore * rounds.count + rounds.trial < steps
    assert rounds.trial == 1 or rounds.trial <= Fraction(15, 1000) * steps
    assert rounds.judged == 1 or rounds.judged <= Fraction(75, 10_000) * steps * batch
    assert any(rounds.watches(step) for step in range(1, rounds.explore + 1))


@pytest.mark.parametrize(
    ("steps", "held_out", "why"), [(100, 0, "add clips, or set rank_allocation.gate"), (3, 8, "3 steps are")]
)
def test_what_cannot_be_planned_is_said(steps: int, held_out: int, why: str) -> None:
    chosen = Hyperparameters(rank_allocation=RankAllocation())
    assert planned_rounds(chosen, steps, held_out) is None
    assert planned_rounds(chosen.model_copy(update={"rank_allocation": None}), 100, 8) is None
    assert why in not_planned(steps, held_out)
