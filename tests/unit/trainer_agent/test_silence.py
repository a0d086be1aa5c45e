"""When an engine counts as hung."""

import pytest

from qlora_engine.updates import Alive, StepTaken
from schemas.events.job import ProgressPoint
from trainer_agent.silence import START_SECONDS, STEPS, STRETCHES, Silence


def step(seconds: float) -> StepTaken:
    point = ProgressPoint(
        step=1, loss=1.0, learning_rate=1e-3, grad_norm=1, tokens=9, tokens_per_second=9, step_seconds=seconds
    )
    return StepTaken(total_steps=9, epoch=0.1, point=point)


def test_before_the_first_step_patience_is_never_short() -> None:
    assert Silence(600).allowed_seconds == 600
    silence = Silence(20)
    assert silence.allowed_seconds == START_SECONDS
    silence.heard(Alive())
    assert silence.allowed_seconds == START_SECONDS
    silence.heard(step(0.1))
    assert silence.allowed_seconds == 20


def test_slow_steps_earn_patience_and_fast_ones_cost_none() -> None:
    silence = Silence(600)
    silence.heard(step(60))
    assert silence.allowed_seconds == 60 * STEPS
    silence.heard(step(1))
    assert silence.allowed_seconds == 60 * STEPS


def test_only_listening_in_vain_counts() -> None:
    silence = Silence(200)
    assert silence.stretch_seconds == pytest.approx(20)
    assert [silence.unheard() for _ in range(STRETCHES)] == [False] * (STRETCHES - 1) + [True]


def test_any_word_begins_anew() -> None:
    silence = Silence(100)
    for _ in range(3):
        assert not any(silence.unheard() for _ in range(STRETCHES - 1))
        silence.heard(Alive())
