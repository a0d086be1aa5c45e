"""A pause is as long as it says, however the wall clock jumps."""

from datetime import UTC, datetime, timedelta

import pytest

from command_api.messaging.pauses import Pauses

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PAUSE = timedelta(seconds=8)
ATTEMPT = ("job_1", 2)


def due_in(pauses: Pauses, *, wall: datetime, monotonic: float) -> float:
    return pauses.due_in(ATTEMPT, NOON + PAUSE, PAUSE, wall=wall, monotonic=monotonic)


def test_without_a_pause_it_is_due_at_once() -> None:
    assert Pauses().due_in(ATTEMPT, None, timedelta(0), wall=NOON, monotonic=100) == 0


def test_what_is_left_of_a_pause_is_waited_for_after_a_restart() -> None:
    assert due_in(Pauses(), wall=NOON + timedelta(seconds=3), monotonic=100) == 5
    assert due_in(Pauses(), wall=NOON + timedelta(seconds=9), monotonic=100) == 0


@pytest.mark.parametrize("jump", [timedelta(days=-1), timedelta(hours=-1), timedelta(days=365)])
def test_a_wall_clock_that_jumps_meanwhile_changes_nothing(jump: timedelta) -> None:
    pauses = Pauses()
    assert due_in(pauses, wall=NOON, monotonic=100) == 8
    assert due_in(pauses, wall=NOON + jump, monotonic=105) == 3
    assert due_in(pauses, wall=NOON + jump, monotonic=108) == 0


def test_a_wall_clock_that_was_set_back_before_cannot_stretch_it() -> None:
    assert due_in(Pauses(), wall=NOON - timedelta(days=1), monotonic=100) == 8


def test_only_queued_attempts_are_remembered() -> None:
    pauses = Pauses()
    due_in(pauses, wall=NOON, monotonic=100)
    pauses.keep([])
    assert due_in(pauses, wall=NOON, monotonic=200) == 8
