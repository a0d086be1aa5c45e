"""When a webhook is tried again, when it is given up, and which deliveries go next."""

import itertools
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_api.webhooks.schedule import (
    DELAYS,
    JITTER,
    WINDOW,
    Again,
    Answer,
    Delivered,
    GivenUp,
    Health,
    NoAnswer,
    Waiting,
    choose,
    judge,
    wait_wished,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
FAILED = Answer(500)


def attempts(answer: Answer | NoAnswer, jitter: float = 0.5) -> list[timedelta]:
    """When every attempt takes place if each has this answer, since the first."""
    now, tries, times = START, 0, []
    while True:
        tries += 1
        times.append(now - START)
        verdict = judge(answer, tries, START, now, jitter)
        if not isinstance(verdict, Again):
            assert verdict == GivenUp()
            return times
        now = verdict.due_at


def test_the_delays_are_those_of_standard_webhooks_and_end_after_three_days() -> None:
    assert attempts(FAILED) == [
        timedelta(),
        timedelta(seconds=5),
        timedelta(minutes=5, seconds=5),
        timedelta(minutes=35, seconds=5),
        timedelta(hours=2, minutes=35, seconds=5),
        timedelta(hours=7, minutes=35, seconds=5),
        timedelta(hours=17, minutes=35, seconds=5),
        timedelta(hours=31, minutes=35, seconds=5),
        timedelta(hours=51, minutes=35, seconds=5),
        timedelta(hours=72),
    ]


@given(st.floats(0, 1), st.sampled_from([FAILED, Answer(302), Answer(404), NoAnswer("timeout", "")]))
def test_whatever_the_jitter_it_goes_on_for_three_days_and_no_longer(
    jitter: float, answer: Answer | NoAnswer
) -> None:
    times = attempts(answer, jitter)
    assert times[-1] == WINDOW
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    for gap, delay in zip(gaps[:-1], DELAYS, strict=False):
        assert (
            delay * (1 - JITTER) - timedelta(seconds=1) <= gap <= delay * (1 + JITTER) + timedelta(seconds=1)
        )


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_a_success(status: int) -> None:
    assert judge(Answer(status), 1, START, START, 0.5) == Delivered()


@pytest.mark.parametrize("status", [100, 301, 302, 304, 307, 400, 401, 404, 409, 429, 500, 503])
def test_nothing_else_is_a_success(status: int) -> None:
    assert isinstance(judge(Answer(status), 1, START, START, 0.5), Again)


def test_gone_means_no_more_of_anything() -> None:
    assert judge(Answer(410), 1, START, START, 0.5) == GivenUp(gone=True)


def test_the_receiver_s_wish_to_wait_is_granted_within_the_three_days() -> None:
    assert judge(Answer(429, retry_after="90"), 1, START, START, 0.5) == Again(START + timedelta(seconds=90))
    moment = format_datetime(START + 2 * HOUR, usegmt=True)
    assert judge(Answer(503, retry_after=moment), 1, START, START, 0.5) == Again(START + 2 * HOUR)
    assert judge(Answer(503, retry_after="999999999999"), 1, START, START, 0.5) == Again(START + WINDOW)
    # Less than the schedule has is no reason to hurry.
    assert judge(Answer(503, retry_after="1"), 5, START, START, 0.5) == Again(START + 5 * HOUR)


@pytest.mark.parametrize("text", ["", "soon", "-5", "1.5", "١٢", "Thu, 99 Foo 2026"])
def test_a_wish_that_makes_no_sense_is_none(text: str) -> None:
    assert wait_wished(text, START) == timedelta()


def test_a_date_that_has_passed_asks_for_no_wait() -> None:
    assert wait_wished(format_datetime(START - HOUR, usegmt=True), START) == timedelta()


def test_a_receiver_is_dead_after_three_days_without_a_success() -> None:
    health = Health().after(delivered=False, attempted_at=START)
    assert not health.is_dead(START + WINDOW - timedelta(seconds=1))
    assert health.is_dead(START + WINDOW)
    well = health.after(delivered=True, attempted_at=START + HOUR)
    assert not well.is_dead(START + 2 * WINDOW)
    assert not well.after(delivered=False, attempted_at=START + WINDOW).is_dead(START + WINDOW)


def test_the_first_delivery_s_last_attempt_is_when_a_receiver_is_dead() -> None:
    """So nobody is disabled for one bad event, and nobody is tried for ever."""
    health = Health()
    for since in attempts(FAILED):
        health = health.after(delivered=False, attempted_at=START + since)
        assert health.is_dead(START + since) == (since == WINDOW)


def test_one_bad_event_is_not_taken_for_an_absence() -> None:
    health = Health()
    for number in range(1, 7):
        health = health.after(delivered=False, attempted_at=START)
        assert health.was_away() == (number >= 5)


def due(name: str, *lanes: str) -> dict[str, list[Waiting]]:
    return {name: [Waiting(f"{name}{number}", name, lane) for number, lane in enumerate(lanes)]}


def names(chosen: list[Waiting]) -> list[str]:
    return [each.delivery_id for each in chosen]


def test_one_stream_s_events_go_one_after_the_other_and_others_beside() -> None:
    waiting = due("a", "x", "x", "y", "z")
    assert names(choose(waiting, {}, at_once=9, at_once_each=9)) == ["a0", "a2", "a3"]
    under_way = {"a0": waiting["a"][0]}
    assert names(choose(waiting, under_way, at_once=9, at_once_each=9)) == ["a2", "a3"]


def test_nobody_takes_all_there_is() -> None:
    waiting = due("a", *"stuvwxyz") | due("b", "x", "y") | due("c", "x")
    assert names(choose(waiting, {}, at_once=5, at_once_each=9)) == ["a0", "b0", "c0", "a1", "b1"]
    assert names(choose(waiting, {}, at_once=99, at_once_each=2)) == ["a0", "b0", "c0", "a1", "b1"]
    under_way = {each.delivery_id: each for each in waiting["a"][:2]}
    assert names(choose(waiting, under_way, at_once=3, at_once_each=2)) == ["b0"]
    assert choose(waiting, under_way, at_once=2, at_once_each=9) == []


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=30),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_the_bounds_hold_and_nothing_that_may_go_is_left(
    wanted: list[tuple[str, str]], at_once: int, each: int
) -> None:
    waiting: dict[str, list[Waiting]] = {}
    for number, (name, lane) in enumerate(wanted):
        waiting.setdefault(name, []).append(Waiting(str(number), name, lane))
    chosen = choose(waiting, {}, at_once=at_once, at_once_each=each)
    places = [(one.subscription_id, one.lane) for one in chosen]
    assert len(places) == len(set(places)) <= at_once
    most = {name: min(each, len({one.lane for one in ones})) for name, ones in waiting.items()}
    assert len(chosen) == min(at_once, sum(most.values()))
    for one in chosen:  # the first of its lane
        first = next(other for other in waiting[one.subscription_id] if other.lane == one.lane)
        assert first is one
