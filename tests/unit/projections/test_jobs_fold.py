"""The job view folds the whole state machine."""

from datetime import timedelta

import pytest

from projections.errors import MissingRow
from projections.views.jobs import Jobs, JobView
from schemas.events import REGISTRY, Event, job
from schemas.footprint import Preflight
from schemas.ids import Prefix, derived_id
from tests.stories import (
    AGENT,
    BEGINNING,
    JOB,
    ORGANIZATION,
    OTHER_AGENT,
    Teller,
    admitted,
    finished,
    progressed,
    stored,
    taken,
    whole_job,
)


def folded(*events: Event) -> JobView:
    view, result = Jobs(), None
    for recorded in Teller().tell(JOB, *events):
        result = view.fold(result, recorded)
    assert result is not None
    return result


def test_the_view_wants_every_job_event() -> None:
    job_types = {cls.TYPE for cls in REGISTRY.types if cls.TYPE.startswith("kinora.job.")}
    assert set(Jobs.types) == job_types


def test_a_request_is_pending() -> None:
    asked = folded(admitted()[0])
    assert (asked.status, asked.progress, asked.attempt, asked.version) == ("pending", 0.0, 0, 1)
    assert asked.organization_id == ORGANIZATION
    assert asked.created_at == BEGINNING + timedelta(seconds=1)


def test_a_queued_job_says_what_it_waits_for() -> None:
    queued = folded(*admitted())
    assert (queued.status, queued.attempt, queued.total_steps) == ("queued", 1, 12)
    assert queued.wait_reason == "The job waits for an agent of pool default."


def test_a_job_that_nobody_accepts_says_why_it_waits() -> None:
    waiting = folded(
        *admitted(),
        job.JobAssigned(attempt=1, agent_id=AGENT),
        job.AgentDeclined(attempt=1, reason="no space left"),
        job.JobQueued(attempt=2, reason="declined", not_before_seconds=5),
    )
    assert waiting.wait_reason is not None
    assert "declined it, because no space left" in waiting.wait_reason
    assert waiting.not_before is not None


def test_a_running_job_shows_its_newest_figures() -> None:
    running = folded(*admitted(), *taken(1), progressed(1, 1, 4))
    assert (running.status, running.agent_id, running.step, running.wait_reason) == (
        "running",
        AGENT,
        4,
        None,
    )
    assert running.progress == pytest.approx(4 / 12)
    assert running.loss_first == pytest.approx(1.01)
    assert running.loss_last == pytest.approx(1.04)
    assert running.eta_seconds == 8
    assert running.tokens_per_second == 1000.0


def test_a_corrected_forecast_replaces_the_first_one() -> None:
    first = Preflight(
        parts=(), peak_bytes=1, host_bytes=2, largest_pass_tokens=3, tokens=4, steps=5, teraflops=6.0
    )
    corrected = first.model_copy(update={"peak_bytes": 7, "calibrated": True})
    started = taken(1)[-1].model_copy(update={"preflight": first})
    assert isinstance(started, job.TrainingStarted)
    so_far = (*admitted(), *taken(1)[:-1], started)
    assert folded(*so_far).preflight == first
    told = progressed(1, 1, 3).model_copy(update={"preflight": corrected})
    assert folded(*so_far, told, progressed(1, 4, 6)).preflight == corrected


def test_a_lost_lease_goes_back_to_the_checkpoint() -> None:
    requeued = folded(
        *admitted(),
        *taken(1),
        progressed(1, 1, 8),
        job.LeaseExpired(attempt=1, agent_id=AGENT),
        job.JobQueued(attempt=2, reason="lease_expired", resume_step=6, not_before_seconds=2),
    )
    assert (requeued.status, requeued.attempt, requeued.agent_id, requeued.step) == ("queued", 2, None, 6)
    assert requeued.last_attempt_error is not None
    assert requeued.last_attempt_error.code == "node_lost"
    assert requeued.not_before == requeued.queued_at + timedelta(seconds=2) if requeued.queued_at else False
    assert requeued.loss_first == pytest.approx(1.01)


def test_an_attempt_from_the_beginning_forgets_the_losses_of_the_last() -> None:
    again = folded(
        *admitted(),
        *taken(1),
        progressed(1, 1, 4),
        job.AttemptFailed(attempt=1, code="oom", message="out of memory"),
        job.JobQueued(attempt=2, reason="retry"),
    )
    assert (again.loss_first, again.loss_last, again.step) == (None, None, 0)


def test_the_whole_story_ends_well() -> None:
    done = folded(*whole_job())
    assert (done.status, done.attempt, done.progress, done.step) == ("succeeded", 2, 1.0, 12)
    assert done.output_model_id == derived_id(Prefix.MODEL, JOB, "adapter")
    assert done.agent_id is None
    assert done.finished_at == done.updated_at
    assert done.loss_first == pytest.approx(1.01), (
        "the first attempt's, because the second one went on from it"
    )
    assert done.loss_last == 2.12
    assert done.evaluation_before is not None
    assert done.evaluation_after is not None
    assert (done.evaluation_before.exact_match, done.evaluation_after.exact_match) == (0.0, 0.75)
    assert done.checkpoint_step == 6
    assert done.adapter == (stored("adapter_model.safetensors"),)
    assert [warning.code for warning in done.warnings] == ["slow_decoding"]
    assert done.version == done.last_position == len(whole_job())


def test_an_early_end_is_told_until_the_job_is_tried_again() -> None:
    early = job.TrainingFinished(
        attempt=1, steps=8, loss_first=2, loss_last=1, seconds=3, stopped_early=True, adapter_step=4
    )
    told = folded(*admitted(), *taken(1), progressed(1, 1, 8), early)
    assert (told.stopped_early, told.adapter_step, told.step, told.total_steps) == (True, 4, 8, 12)
    again = folded(
        *admitted(),
        *taken(1),
        early,
        job.LeaseExpired(attempt=1, agent_id=AGENT),
        job.JobQueued(attempt=2, reason="lease_expired"),
    )
    assert (again.stopped_early, again.adapter_step) == (False, None)


def test_a_job_that_began_once_tells_its_own_first_loss() -> None:
    assert folded(*admitted(), *taken(1), progressed(1, 2, 12), *finished(1)).loss_first == 2.5


def test_stopping_lasts_until_the_agent_has_stopped() -> None:
    story: list[Event] = [*admitted(), *taken(1), progressed(1, 1, 4)]
    story.append(job.JobStopRequested(mode="graceful", reason="enough"))
    story.append(progressed(1, 5, 5))
    assert folded(*story).status == "stopping"
    stopped = folded(*story, job.JobStopped(attempt=1, step=5, reason="enough"))
    assert (stopped.status, stopped.step, stopped.stop_reason, stopped.stop_mode) == (
        "cancelled",
        5,
        "enough",
        "graceful",
    )
    assert stopped.finished_at is not None


def test_a_failure_keeps_its_reason() -> None:
    failed = folded(
        *admitted(), job.JobFailed(attempt=0, code="does_not_fit", message="too large", retryable=False)
    )
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.wait_reason) == ("failed", "does_not_fit", None)


def test_the_second_agent_holds_the_second_attempt() -> None:
    assert folded(*whole_job()[:17]).agent_id == OTHER_AGENT


def test_an_event_of_an_unknown_job_is_refused() -> None:
    with pytest.raises(MissingRow, match=JOB):
        folded(job.JobValidationStarted())
