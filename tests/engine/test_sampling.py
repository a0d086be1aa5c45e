"""How many frames a clip gives is known from its facts; what it cannot give is an error."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qlora_engine.data.sampling import Sampling, Timeline, evenly
from qlora_engine.errors import FramesExceedClip
from schemas.training import Hyperparameters


def count(duration: float, available: int, **hyperparameters: Any) -> int:
    return Sampling.of(Hyperparameters(**hyperparameters)).count("long.mp4", duration, available)


def test_a_longer_clip_gives_more_at_a_rate() -> None:
    assert [count(seconds, 900, frames_per_second=2) for seconds in (0.1, 1, 2.3, 30)] == [1, 2, 5, 60]
    assert count(30, 900, frames_per_second=2, max_frames=16) == 16
    assert count(1, 900, frames_per_second=2, min_frames=4) == 4
    assert count(30, 900) == 4


@pytest.mark.parametrize(
    ("hyperparameters", "says"),
    [
        ({"frames": 9}, ("frames is 9", "long.mp4 has only 8 frames", "lower frames to 8")),
        ({"frames_per_second": 10}, ("frames_per_second 10 takes 20", "only 8 in 2 s", "lower")),
        ({"frames_per_second": 1, "min_frames": 9}, ("min_frames 9 takes 9", "only 8", "lower")),
        ({"frames_per_second": 240}, ("takes 480 frames", "only 8")),
    ],
)
def test_what_a_clip_cannot_give_is_refused(hyperparameters: dict[str, Any], says: tuple[str, ...]) -> None:
    with pytest.raises(FramesExceedClip) as refused:
        count(2, 8, **hyperparameters)
    assert [part for part in says if part not in refused.value.message] == []


def test_more_than_a_clip_may_give_is_refused_unless_a_bound_is_set() -> None:
    with pytest.raises(FramesExceedClip, match=r"takes 1200 frames .* at most 512; .* set max_frames"):
        count(600, 18_000, frames_per_second=2)
    assert count(600, 18_000, frames_per_second=2, max_frames=512) == 512


@pytest.mark.parametrize(
    ("hyperparameters", "says"),
    [
        ({"max_frames": 8}, "max_frames 8 bounds frames_per_second, which is not set"),
        ({"min_frames": 8}, "min_frames 8 bounds frames_per_second, which is not set"),
        (
            {"frames_per_second": 1, "min_frames": 9, "max_frames": 8},
            "min_frames 9 is larger than max_frames 8",
        ),
    ],
)
def test_parameters_that_contradict_one_another(hyperparameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Hyperparameters(**hyperparameters)


@given(
    gaps=st.lists(st.floats(0.001, 5), min_size=1, max_size=60),
    wanted=st.integers(1, 60),
)
def test_frames_are_those_on_the_screen_at_the_moments(gaps: list[float], wanted: int) -> None:
    times = tuple(sum(gaps[:place]) for place in range(len(gaps)))
    timeline = Timeline(times, sum(gaps))
    for moment, place in zip(evenly(timeline.end, wanted), timeline.evenly(wanted), strict=True):
        ends = times[place + 1] if place + 1 < len(times) else timeline.end
        assert times[place] - 1e-6 <= moment <= ends + 1e-6


def test_stamps_that_are_missing_or_fall_back_are_replaced_by_counting() -> None:
    assert Timeline.from_stamps([-2, 0, 3], 1, 0.5, 10) == Timeline((0.0, 1.0, 2.5), 3.0)
    for stamps in ([0, None, 2], [0, 2, 2], [0, 3, 1]):
        assert Timeline.from_stamps(stamps, 1, 0.5, 10).times == (0.0, 0.1, 0.2)
    assert Timeline.from_stamps([7], 0, 0.5, 10) == Timeline((0.0,), 0.1)
