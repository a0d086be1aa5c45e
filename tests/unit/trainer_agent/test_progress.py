"""The log's curve is bounded, even and complete at both ends."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_engine.updates import StepTaken
from schemas.events.job import ProgressPoint
from schemas.footprint import Preflight
from trainer_agent.progress import MOST_POINTS, ProgressReports, thin


def point(step: int) -> ProgressPoint:
    return ProgressPoint(
        step=step,
        loss=1.0,
        learning_rate=1e-3,
        grad_norm=0.5,
        tokens=10,
        tokens_per_second=5.0,
        step_seconds=2.0,
    )


def taken(step: int, total: int, eta: float | None = None) -> StepTaken:
    return StepTaken(total_steps=total, epoch=0.5, point=point(step), eta_seconds=eta)


@given(st.integers(min_value=1, max_value=3000))
def test_thinning_keeps_both_ends_and_an_even_spread(count: int) -> None:
    points = [point(step) for step in range(1, count + 1)]
    kept = [one.step for one in thin(points)]
    assert len(kept) == min(count, MOST_POINTS)
    assert kept[0] == 1
    assert kept[-1] == count
    gaps = {later - earlier for earlier, later in pairwise(kept)}
    assert not gaps or (min(gaps) > 0 and max(gaps) - min(gaps) <= 1)


def test_a_corrected_forecast_is_told_once_with_the_steps_that_corrected_it() -> None:
    reports = ProgressReports()
    corrected = Preflight(
        parts=(), peak_bytes=1, host_bytes=2, largest_pass_tokens=3, tokens=4, steps=5, teraflops=6.0
    )
    reports.expect(corrected)
    told = [reports.add(taken(step, 100), now=10.0 * step) for step in (1, 2)]
    assert [report.preflight for report in told if report is not None] == [corrected, None]


def test_the_first_step_is_reported_at_once_and_the_next_after_a_second() -> None:
    reports = ProgressReports()
    first = reports.add(taken(1, 100), now=10.0)
    assert first is not None
    assert [one.step for one in first.points] == [1]
    assert reports.add(taken(2, 100), now=10.5) is None
    second = reports.add(taken(3, 100), now=11.0)
    assert second is not None
    assert second.step == 3
    assert [one.step for one in second.points] == [2, 3]


@pytest.mark.parametrize(("eta", "due_after"), [(None, 1.0), (500.0, 1.0), (10_000.0, 10.0)])
def test_a_long_training_is_reported_less_often(eta: float | None, due_after: float) -> None:
    reports = ProgressReports()
    reports.add(taken(1, 100, eta), now=0.0)
    assert reports.add(taken(2, 100, eta), now=due_after * 0.9) is None
    assert reports.add(taken(3, 100, eta), now=due_after * 1.1) is not None


def test_every_step_of_a_fast_training_is_in_one_report_or_thinned_from_it() -> None:
    reports = ProgressReports()
    sent = [reports.add(taken(step, 5000), now=step / 1000) for step in range(1, 5001)]
    last = reports.flush()
    assert last is not None
    assert last.step == 5000
    seen = [one.step for report in (*sent, last) if report is not None for one in report.points]
    assert seen[0] == 1
    assert seen[-1] == 5000
    assert seen == sorted(set(seen))
    assert all(len(report.points) <= MOST_POINTS for report in (*sent, last) if report is not None)
    assert reports.flush() is None
