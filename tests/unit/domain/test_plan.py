import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_api.domain.plan import Plan, plan_training
from schemas.training import Hyperparameters, held_out_count
from tests.unit.domain.samples import FACTS


@pytest.mark.parametrize(
    ("clips", "fraction", "held_out"),
    [(10, 0.0, 0), (4, 0.9, 0), (5, 0.01, 1), (10, 0.2, 2), (5, 0.9, 4), (100, 0.25, 25)],
)
def test_the_split_rule(clips: int, fraction: float, held_out: int) -> None:
    assert held_out_count(clips, fraction) == held_out


@given(st.integers(1, 10_000), st.floats(0, 0.9))
def test_something_is_always_left_to_train_on(clips: int, fraction: float) -> None:
    assert 0 <= held_out_count(clips, fraction) < clips


def test_steps_follow_from_epochs() -> None:
    hyperparameters = Hyperparameters(batch_size=5, epochs=2.5, held_out_fraction=0.2)
    assert plan_training(FACTS, hyperparameters) == Plan(8, 16, 4, 2.5)


def test_max_steps_goes_before_epochs() -> None:
    hyperparameters = Hyperparameters(batch_size=16, max_steps=7, held_out_fraction=0.2)
    assert plan_training(FACTS, hyperparameters) == Plan(7, 16, 4, 7.0)


def test_steps_counted_in_tokens_leave_the_epochs_open() -> None:
    chosen = Hyperparameters(
        tokens_per_step=900, tokens_per_micro_batch=300, max_steps=7, held_out_fraction=0.2
    )
    assert plan_training(FACTS, chosen) == Plan(7, 16, 4, epochs=None)


@given(st.integers(1, 200), st.integers(1, 5), st.floats(0, 0.9), st.integers(1, 64), st.floats(0.01, 50))
def test_a_plan_is_always_possible(
    clips: int, per_clip: int, fraction: float, batch_size: int, epochs: float
) -> None:
    facts = FACTS.model_copy(update={"clips": clips, "examples": clips * per_clip})
    chosen = Hyperparameters(held_out_fraction=fraction, batch_size=batch_size, epochs=epochs)
    plan = plan_training(facts, chosen)
    assert plan.total_steps >= 1
    assert plan.training_examples >= 1
    assert plan.held_out_examples >= 0
    assert plan.training_examples + plan.held_out_examples == facts.examples


def test_a_dataset_without_clips_is_split_by_its_texts() -> None:
    facts = FACTS.model_copy(update={"clips": 0, "examples": 30, "split_groups": 10})
    plan = plan_training(facts, Hyperparameters(held_out_fraction=0.2))
    assert (plan.training_examples, plan.held_out_examples) == (24, 6)


def test_the_owners_split_is_what_is_planned_with() -> None:
    facts = FACTS.model_copy(update={"validation_examples": 7})
    plan = plan_training(facts, Hyperparameters(held_out_fraction=0.9))
    assert plan.held_out_examples == 7
