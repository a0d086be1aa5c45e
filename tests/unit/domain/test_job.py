"""The state machine of a job, one row of its transition table after the other."""

import pytest

from command_api.domain.job_endings import LONGEST_BACKOFF_SECONDS, backoff_seconds
from command_api.domain.job_phases import Finalizing, Queued, Running, Stopping
from schemas import work
from schemas.commands import Command
from schemas.events import Event
from schemas.events.job import (
    AgentAccepted,
    AgentDeclined,
    AttemptFailed,
    AttemptReleased,
    CheckpointSaved,
    JobAssigned,
    JobEvaluated,
    JobFailed,
    JobProgressed,
    JobQueued,
    JobStopped,
    JobStopRequested,
    JobValidationStarted,
    LeaseExpired,
    LogSegmentStored,
    RankChanged,
    WarningRaised,
)
from schemas.job_status import HELD_PHASES, PHASES, TERMINAL_PHASES, JobPhase
from tests.unit.domain import job_story as story
from tests.unit.domain.job_story import HISTORIES, claim, expire, job, says, stop
from tests.unit.domain.samples import AGENT, EVALUATION, JOB, OTHER_AGENT, POINT

Transition = tuple[str, tuple[Event, ...], Command, JobPhase]

TRANSITIONS: list[Transition] = [
    ("pending", story.PENDING, story.VALIDATE, "validating"),
    ("pending", story.PENDING, stop(), "cancelled"),
    ("validating", story.VALIDATING, story.ADMIT, "queued"),
    ("validating", story.VALIDATING, stop(), "cancelled"),
    ("validating", story.VALIDATING, story.REFUSE, "failed"),
    ("queued", story.QUEUED, claim(), "assigned"),
    ("queued", story.QUEUED, stop(), "cancelled"),
    ("queued", story.QUEUED, story.REFUSE, "failed"),
    ("assigned", story.ASSIGNED, says(story.ACCEPTED), "preparing"),
    ("assigned", story.ASSIGNED, expire(), "queued"),
    ("assigned", story.ASSIGNED, says(story.DECLINED), "queued"),
    ("assigned", story.ASSIGNED, stop(), "cancelled"),
    ("preparing", story.PREPARING, says(story.STARTED), "running"),
    ("preparing", story.PREPARING, says(story.CRASHED), "queued"),
    ("preparing", story.PREPARING, expire(), "queued"),
    ("preparing", story.PREPARING, says(story.BROKEN), "failed"),
    ("preparing", story.PREPARING, stop(), "stopping"),
    ("running", story.RUNNING, says(story.PROGRESSED), "running"),
    ("running", story.RUNNING, says(story.CHECKPOINT), "running"),
    ("running", story.RUNNING, stop("immediate"), "stopping"),
    ("running", story.RUNNING, says(story.FINISHED), "finalizing"),
    ("running", story.RUNNING, expire(), "queued"),
    ("running", story.RUNNING, says(story.BROKEN), "failed"),
    ("stopping", story.STOPPING, says(story.STOPPED), "cancelled"),
    ("stopping", story.STOPPING, expire(), "cancelled"),
    ("stopping", story.STOPPING, says(story.FINISHED), "finalizing"),
    ("finalizing", story.FINALIZING, says(story.ADAPTER), "succeeded"),
    ("finalizing", story.FINALIZING, expire(), "queued"),
    ("finalizing", story.FINALIZING, says(story.BROKEN), "failed"),
]


@pytest.mark.parametrize(
    ("before", "history", "command", "after"),
    TRANSITIONS,
    ids=[f"{before}-{command.TYPE}-{after}" for before, _, command, after in TRANSITIONS],
)
def test_the_transition_table(
    before: str, history: tuple[Event, ...], command: Command, after: JobPhase
) -> None:
    assert job.given(*history).state.phase == before
    assert job.given(*history).when(command).then_state().phase == after


@pytest.mark.parametrize("phase", PHASES)
def test_each_history_ends_in_its_phase(phase: JobPhase) -> None:
    assert job.given(*HISTORIES[phase]).state.phase == phase


# ---- before an agent has it ---------------------------------------------------------------------


def test_validation_and_admission() -> None:
    job.given(*story.PENDING).when(story.VALIDATE).then(JobValidationStarted())
    job.given(*story.VALIDATING).when(story.ADMIT).then(story.PLANNED, story.FIRST_QUEUED)
    job.given(*story.PENDING).when(story.ADMIT).then_refused("not_validating")


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase not in ("pending", "validating")])
def test_the_admission_policy_may_run_again_at_any_time(phase: JobPhase) -> None:
    job.given(*HISTORIES[phase]).when(story.VALIDATE).then_nothing()
    job.given(*HISTORIES[phase]).when(story.ADMIT).then_nothing()


def test_a_refused_job_fails_with_the_reason() -> None:
    job.given(*story.VALIDATING).when(story.REFUSE).then(
        JobFailed(attempt=0, code="does_not_fit", message="the model does not fit", retryable=False)
    )
    job.given(*story.FAILED).when(story.REFUSE).then_nothing()
    job.given(*story.PENDING).when(story.REFUSE).then_refused("not_validating")
    job.given(*story.RUNNING).when(story.REFUSE).then_refused("already_assigned")


# ---- claims -------------------------------------------------------------------------------------


def test_a_claim_is_answered_alike_when_repeated() -> None:
    job.given(*story.QUEUED).when(claim()).then(JobAssigned(attempt=1, agent_id=AGENT))
    for phase in HELD_PHASES:
        job.given(*HISTORIES[phase]).when(claim()).then_nothing()


def test_a_claim_of_another_attempt_or_of_a_taken_one_is_gone() -> None:
    job.given(*story.QUEUED).when(claim(2)).then_refused("offer_gone")
    job.given(*story.SECOND_QUEUED).when(claim(1)).then_refused("offer_gone")
    job.given(*story.ASSIGNED).when(claim(1, OTHER_AGENT)).then_refused("offer_gone")
    for phase in TERMINAL_PHASES:
        job.given(*HISTORIES[phase]).when(claim()).then_refused("offer_gone")


# ---- reports ------------------------------------------------------------------------------------


def test_what_the_holder_measures_is_noted() -> None:
    running = job.given(*story.RUNNING)
    running.when(says(story.EVALUATED)).then(
        JobEvaluated(attempt=1, step=0, phase="before", evaluation=EVALUATION)
    )
    running.when(says(story.RERANKED)).then(
        RankChanged(attempt=1, **story.RERANKED.model_dump(exclude={"kind"}))
    )
    job.given(*story.PREPARING).when(says(story.RERANKED)).then_refused("report_out_of_place")
    running.when(says(story.PROGRESSED)).then(
        JobProgressed(attempt=1, step=5, total_steps=10, epoch=1.0, points=(POINT,))
    )
    running.when(says(story.CHECKPOINT)).then(story.CHECKPOINT_EVENT)
    running.when(says(story.LOG)).then(
        LogSegmentStored(attempt=1, segment=1, content="log", lines=3, object=story.LOG.object)
    )
    running.when(says(story.WARNED)).then(
        WarningRaised(attempt=1, code=story.WARNED.code, message=story.WARNED.message)
    )


def test_the_base_is_evaluated_before_training_starts() -> None:
    state = job.given(*story.PREPARING).when(says(story.EVALUATED)).then_state()
    assert state.phase == "preparing"


@pytest.mark.parametrize(
    ("phase", "repeat"),
    [
        ("preparing", story.ACCEPTED),
        ("running", story.ACCEPTED),
        ("running", story.STARTED),
        ("stopping", story.STARTED),
        ("finalizing", story.FINISHED),
        ("succeeded", story.ADAPTER),
        ("failed", story.BROKEN),
        ("cancelled", story.STOPPED),
    ],
)
def test_a_repeated_report_does_nothing(phase: JobPhase, repeat: work.ReportBody) -> None:
    job.given(*HISTORIES[phase]).when(says(repeat)).then_nothing()


def test_progress_and_checkpoints_only_go_forward() -> None:
    progressed = JobProgressed(attempt=1, step=5, total_steps=10, epoch=1.0, points=(POINT,))
    job.given(*story.RUNNING, progressed).when(says(story.PROGRESSED)).then_nothing()
    job.given(*story.RUNNING, story.CHECKPOINT_EVENT).when(says(story.CHECKPOINT)).then_nothing()


@pytest.mark.parametrize(
    "body",
    [story.ACCEPTED, story.PROGRESSED, story.CHECKPOINT, story.CRASHED, story.RELEASED, story.ADAPTER],
    ids=lambda body: body.kind,
)
@pytest.mark.parametrize("phase", PHASES)
def test_only_the_holder_of_the_attempt_is_believed(phase: JobPhase, body: work.ReportBody) -> None:
    given = job.given(*HISTORIES[phase])
    given.when(says(body, agent_id=OTHER_AGENT)).then_refused("attempt_not_held")
    given.when(says(body, attempt=2)).then_refused("attempt_not_held")


def test_a_report_of_a_lost_attempt_is_refused_while_the_same_agent_holds_the_next() -> None:
    again = (*story.SECOND_QUEUED, JobAssigned(attempt=2, agent_id=AGENT))
    job.given(*again).when(says(story.ACCEPTED, attempt=1)).then_refused("attempt_not_held")
    job.given(*again).when(says(story.ACCEPTED, attempt=2)).then(AgentAccepted(attempt=2))


@pytest.mark.parametrize(
    ("phase", "body"),
    [
        ("assigned", story.STARTED),
        ("assigned", story.FINISHED),
        ("preparing", story.PROGRESSED),
        ("preparing", story.CHECKPOINT),
        ("preparing", story.FINISHED),
        ("running", story.ADAPTER),
        ("running", story.PARTIAL),
        ("running", story.STOPPED),
        ("stopping", story.ADAPTER),
        ("finalizing", story.PARTIAL),
        ("finalizing", story.STOPPED),
        ("running", work.DatasetJudged()),
        ("running", work.ModelJudged()),
    ],
)
def test_a_report_that_cannot_come_now_is_refused(phase: JobPhase, body: work.ReportBody) -> None:
    job.given(*HISTORIES[phase]).when(says(body)).then_refused("report_out_of_place")


def test_success_is_recorded_only_with_the_whole_adapter() -> None:
    job.given(*story.FINALIZING).when(says(story.ADAPTER)).then(story.ADAPTER_EVENT, story.SUCCEEDED_EVENT)


# ---- an attempt ends without success --------------------------------------------------------------


def test_a_lost_agent_requeues_the_job_from_its_last_checkpoint() -> None:
    job.given(*story.RUNNING, story.CHECKPOINT_EVENT).when(expire()).then(
        LeaseExpired(attempt=1, agent_id=AGENT), JobQueued(attempt=2, reason="lease_expired", resume_step=5)
    )


TWO_CHECKPOINTS = (
    *story.RUNNING,
    story.CHECKPOINT_EVENT,
    story.CHECKPOINT_EVENT.model_copy(update={"step": 8}),
    LeaseExpired(attempt=1, agent_id=AGENT),
    JobQueued(attempt=2, reason="lease_expired", resume_step=8),
    JobAssigned(attempt=2, agent_id=AGENT),
    AgentAccepted(attempt=2),
)


@pytest.mark.parametrize(
    ("code", "step"), [("checkpoint_unusable", 5), ("checkpoint_mismatch", 0), ("transfer_failed", 8)]
)
def test_a_checkpoint_that_is_of_no_use_is_not_taken_again(code: str, step: int) -> None:
    failed = says(work.Failed(code=code, message="it is damaged", retryable=True), attempt=2)
    job.given(*TWO_CHECKPOINTS).when(failed).then(
        AttemptFailed(attempt=2, code=code, message="it is damaged"),
        JobQueued(attempt=3, reason="retry", not_before_seconds=4.0, resume_step=step),
    )
    assert job.given(*TWO_CHECKPOINTS).when(failed).then_state().history.resume_step == step


def test_without_any_checkpoint_left_it_begins_anew() -> None:
    history = (
        *story.RUNNING,
        story.CHECKPOINT_EVENT,
        LeaseExpired(attempt=1, agent_id=AGENT),
        JobQueued(attempt=2, reason="lease_expired", resume_step=5),
        JobAssigned(attempt=2, agent_id=AGENT),
        AgentAccepted(attempt=2),
    )
    failed = work.Failed(code="checkpoint_unusable", message="it is damaged", retryable=True)
    job.given(*history).when(says(failed, attempt=2)).then(
        AttemptFailed(attempt=2, code="checkpoint_unusable", message="it is damaged"),
        JobQueued(attempt=3, reason="retry", not_before_seconds=4.0, resume_step=0),
    )


def test_the_next_attempt_counts_its_steps_from_the_checkpoint() -> None:
    history = (
        *story.RUNNING,
        story.CHECKPOINT_EVENT,
        JobProgressed(attempt=1, step=8, total_steps=10, epoch=1.0, points=(POINT,)),
        LeaseExpired(attempt=1, agent_id=AGENT),
        JobQueued(attempt=2, reason="lease_expired", resume_step=5),
        JobAssigned(attempt=2, agent_id=OTHER_AGENT),
        AgentAccepted(attempt=2),
        story.STARTED_EVENT.model_copy(update={"attempt": 2, "start_step": 5}),
    )
    state = job.given(*history).state
    assert isinstance(state, Running)
    assert (state.history.step, state.history.total_steps, state.history.failures) == (5, 10, 1)
    seventh = story.PROGRESSED.model_copy(update={"step": 7})
    job.given(*history).when(says(seventh, 2, OTHER_AGENT)).then(
        JobProgressed(attempt=2, step=7, total_steps=10, epoch=1.0, points=(POINT,))
    )
    rewritten = story.CHECKPOINT.model_copy(update={"step": 5})
    job.given(*history).when(says(rewritten, 2, OTHER_AGENT)).then(
        CheckpointSaved(attempt=2, step=5, objects=story.CHECKPOINT_OBJECTS)
    )


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase not in HELD_PHASES])
def test_a_lease_that_is_gone_does_not_expire(phase: JobPhase) -> None:
    job.given(*HISTORIES[phase]).when(expire()).then_nothing()


def test_the_lease_of_an_older_attempt_does_not_expire_the_newer_one() -> None:
    again = (*story.SECOND_QUEUED, JobAssigned(attempt=2, agent_id=AGENT))
    job.given(*again).when(expire(1)).then_nothing()


def test_a_decline_waits_a_little_and_a_release_does_not() -> None:
    job.given(*story.ASSIGNED).when(says(story.DECLINED)).then(
        AgentDeclined(attempt=1, reason=story.DECLINED.reason),
        JobQueued(attempt=2, reason="declined", not_before_seconds=5.0),
    )
    job.given(*story.RUNNING, story.CHECKPOINT_EVENT).when(says(story.RELEASED)).then(
        AttemptReleased(attempt=1, reason=story.RELEASED.reason),
        JobQueued(attempt=2, reason="released", resume_step=5),
    )


def test_attempts_that_come_to_nothing_wait_longer_each_time_and_say_so_once() -> None:
    def pause_after(count: int, history: tuple[Event, ...], body: work.ReportBody) -> float:
        events = job.given(*history).when(says(body, count + 1)).made()
        warned = [event for event in events if isinstance(event, WarningRaised)]
        assert [event.code for event in warned] == (["no_agent_accepts"] if count == 2 else [])
        assert all("too little memory" in event.message or "shutting" in event.message for event in warned)
        assert isinstance(events[-1], JobQueued)
        return events[-1].not_before_seconds

    def declined(count: int) -> tuple[Event, ...]:
        return attempts(count, AgentDeclined(attempt=1, reason="busy"), reason="declined")

    def released(count: int) -> tuple[Event, ...]:
        return attempts(count, AttemptReleased(attempt=1, reason="bye"), reason="released")

    counts = (0, 1, 2, 3, 6, 500)
    assert [pause_after(count, declined(count), story.DECLINED) for count in counts] == [
        *(5.0, 10.0, 20.0, 40.0),
        *(300.0, 300.0),
    ]
    assert [pause_after(count, released(count), story.RELEASED) for count in counts] == [
        *(0.0, 5.0, 10.0, 20.0),
        *(160.0, 300.0),
    ]


def test_a_training_that_began_makes_the_next_agent_welcome_at_once() -> None:
    declined = attempts(4, AgentDeclined(attempt=1, reason="busy"), reason="declined")
    began = (*declined, AgentAccepted(attempt=5), story.STARTED_EVENT.model_copy(update={"attempt": 5}))
    job.given(*began).when(says(story.RELEASED, 5)).then(
        AttemptReleased(attempt=5, reason=story.RELEASED.reason), JobQueued(attempt=6, reason="released")
    )


def test_a_job_that_loses_one_agent_after_the_other_waits_in_between() -> None:
    history = attempts(1, LOST, reason="lease_expired")
    job.given(*history).when(expire(2)).then(
        LeaseExpired(attempt=2, agent_id=AGENT),
        JobQueued(attempt=3, reason="lease_expired", not_before_seconds=2.0),
    )


def test_a_retryable_failure_backs_off_and_another_ends_the_job() -> None:
    job.given(*story.RUNNING).when(says(story.CRASHED)).then(
        AttemptFailed(attempt=1, code="oom", message="out of memory"),
        JobQueued(attempt=2, reason="retry", not_before_seconds=2.0),
    )
    job.given(*story.RUNNING).when(says(story.BROKEN)).then(
        JobFailed(attempt=1, code=story.BROKEN.code, message=story.BROKEN.message, retryable=False)
    )


def test_back_off_doubles_up_to_a_minute() -> None:
    assert [backoff_seconds(failures) for failures in (1, 2, 5, 6, 400)] == [2.0, 4.0, 32.0, 60.0, 60.0]
    assert backoff_seconds(6) == LONGEST_BACKOFF_SECONDS


def attempts(count: int, *ending: Event, reason: str) -> tuple[Event, ...]:
    """A history in which `count` attempts ended badly and one more is running."""
    events = list(story.QUEUED)
    for attempt in range(1, count + 1):
        bad = [event.model_copy(update={"attempt": attempt}) for event in ending]
        requeued = JobQueued.model_validate({"attempt": attempt + 1, "reason": reason})
        events += [JobAssigned(attempt=attempt, agent_id=AGENT), *bad, requeued]
    return (*events, JobAssigned(attempt=count + 1, agent_id=AGENT))


LOST = LeaseExpired(attempt=1, agent_id=AGENT)
CRASH = AttemptFailed(attempt=1, code="oom", message="out of memory")


def test_the_last_of_three_bad_attempts_fails_the_job() -> None:
    crashed = job.given(*attempts(2, CRASH, reason="retry")).when(says(story.CRASHED, 3))
    crashed.then(
        AttemptFailed(attempt=3, code="oom", message="out of memory"),
        JobFailed(
            attempt=3,
            code="attempts_exhausted",
            message="3 of 3 attempts failed; the last one: oom: out of memory",
            retryable=True,
        ),
    )
    state = job.given(*attempts(2, LOST, reason="lease_expired")).when(expire(3)).then_state()
    assert (state.phase, state.ended.code, state.ended.retryable) == ("failed", "attempts_exhausted", True)


def test_declines_and_releases_never_use_attempts_up() -> None:
    declined = attempts(50, AgentDeclined(attempt=1, reason="busy"), reason="declined")
    state = job.given(*declined).when(says(story.CRASHED, 51)).then_state()
    assert isinstance(state, Queued)
    assert (state.history.attempt, state.history.failures) == (52, 1)


# ---- stopping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["pending", "validating", "queued", "assigned"])
def test_a_job_that_has_not_begun_is_cancelled_at_once(phase: JobPhase) -> None:
    given = job.given(*HISTORIES[phase])
    attempt = given.state.history.attempt
    given.when(stop()).then(JobStopped(attempt=attempt, step=0, reason="enough"))


def test_an_agent_that_has_begun_is_asked_to_stop() -> None:
    for history in (story.PREPARING, story.RUNNING):
        job.given(*history).when(stop("immediate")).then(JobStopRequested(mode="immediate", reason="enough"))


def test_stopping_again_matters_only_when_it_becomes_more_urgent() -> None:
    job.given(*story.STOPPING).when(stop("graceful")).then_nothing()
    job.given(*story.STOPPING).when(stop("immediate")).then(
        JobStopRequested(mode="immediate", reason="enough")
    )
    immediate = (*story.RUNNING, JobStopRequested(mode="immediate", reason="now"))
    job.given(*immediate).when(stop("graceful")).then_nothing()
    job.given(*story.CANCELLED).when(stop()).then_nothing()


def test_a_graceful_stop_keeps_checkpoint_and_partial_adapter() -> None:
    job.given(*story.STOPPING).when(says(story.CHECKPOINT)).then(story.CHECKPOINT_EVENT)
    job.given(*story.STOPPING).when(says(story.PARTIAL)).then(story.PARTIAL_EVENT)
    kept = job.given(*story.STOPPING, story.PARTIAL_EVENT)
    kept.when(says(story.PARTIAL)).then_nothing()
    kept.when(says(story.STOPPED)).then(JobStopped(attempt=1, step=7, reason="enough"))


def test_training_may_start_while_the_stop_is_on_its_way() -> None:
    stopped_early = (*story.PREPARING, story.STOP_EVENT)
    job.given(*stopped_early).when(says(story.PROGRESSED)).then_refused("report_out_of_place")
    state = job.given(*stopped_early).when(says(story.STARTED)).then_state()
    assert isinstance(state, Stopping)
    assert state.training


@pytest.mark.parametrize("history", [story.STOPPING, story.STOPPED_LATE], ids=["stopping", "finalizing"])
@pytest.mark.parametrize(
    "end",
    [expire(), says(story.CRASHED), says(story.BROKEN), says(story.RELEASED), says(story.DECLINED)],
    ids=["expired", "crashed", "broken", "released", "declined"],
)
def test_an_attempt_that_ends_without_success_carries_the_stop_out(
    history: tuple[Event, ...], end: Command
) -> None:
    assert job.given(*history).when(end).then_state().phase == "cancelled"


def test_training_that_finished_first_goes_on_to_success() -> None:
    state = job.given(*story.STOPPING).when(says(story.FINISHED)).then_state()
    assert isinstance(state, Finalizing)
    assert state.stop is not None
    job.given(*story.STOPPED_LATE).when(says(story.ADAPTER)).then(story.ADAPTER_EVENT, story.SUCCEEDED_EVENT)
    job.given(*story.STOPPED_LATE).when(stop()).then_nothing()


def test_a_finished_training_can_no_longer_be_stopped() -> None:
    job.given(*story.FINALIZING).when(stop()).then_refused("already_finalizing")
    job.given(*story.SUCCEEDED).when(stop()).then_refused("job_ended")
    job.given(*story.FAILED).when(stop()).then_refused("job_ended")


@pytest.mark.parametrize(
    "command",
    [story.VALIDATE, story.ADMIT, story.REFUSE, claim(), expire(), stop()],
    ids=lambda command: command.TYPE,
)
def test_nothing_can_be_done_with_a_job_that_does_not_exist(command: Command) -> None:
    refused = job.given().when(command).then_refused("not_found")
    assert JOB in refused.message


def test_a_report_of_a_job_that_does_not_exist_is_stale() -> None:
    job.given().when(says(story.ACCEPTED)).then_refused("attempt_not_held")
