"""A job: one state machine from the request to its only terminal event.

`RequestJob` is decided in `job_request`, because it looks at a dataset and a model too.
"""

from typing import TypeAlias, assert_never

from command_api.domain import job_endings
from command_api.domain.errors import Conflict, NotFound
from command_api.domain.fencing import offer_gone
from command_api.domain.job_evolution import evolve
from command_api.domain.job_phases import (
    Absent,
    Assigned,
    Cancelled,
    Failed,
    Finalizing,
    JobState,
    Pending,
    Preparing,
    Queued,
    Requested,
    Running,
    Stopping,
    Succeeded,
    Validating,
    holds,
)
from command_api.domain.job_reports import decide_report
from schemas.commands.job import (
    AdmitJob,
    ClaimJob,
    ExpireLease,
    RefuseJob,
    ReportAttempt,
    StopJob,
    ValidateJob,
)
from schemas.events import Event
from schemas.events.job import (
    JobAssigned,
    JobFailed,
    JobPlanned,
    JobQueued,
    JobStopped,
    JobStopRequested,
    JobValidationStarted,
)

__all__ = ["INITIAL", "JobCommand", "State", "decide", "evolve"]

State: TypeAlias = JobState
INITIAL: State = Absent()

JobCommand: TypeAlias = ValidateJob | AdmitJob | RefuseJob | ClaimJob | ReportAttempt | ExpireLease | StopJob


def decide(state: State, command: JobCommand) -> list[Event]:
    if isinstance(command, ReportAttempt):
        return decide_report(state, command)
    if isinstance(state, Absent):
        raise NotFound(f"job {command.job_id} does not exist")
    match command:
        case ValidateJob():
            return [JobValidationStarted()] if isinstance(state, Pending) else []
        case AdmitJob():
            return _admit(state, command)
        case RefuseJob():
            return _refuse(state, command)
        case ClaimJob():
            return _claim(state, command)
        case ExpireLease():
            return _expire(state, command)
        case StopJob():
            return _stop(state, command)
        case _:
            assert_never(command)


def _admit(state: Requested, command: AdmitJob) -> list[Event]:
    match state:
        case Validating():
            planned = JobPlanned(
                total_steps=command.total_steps,
                training_examples=command.training_examples,
                held_out_examples=command.held_out_examples,
                epochs=command.epochs,
                preflight=command.preflight,
            )
            return [planned, JobQueued(attempt=1, reason="requested")]
        case Pending():
            raise Conflict(
                f"job {command.job_id} is not being validated; validate it first", code="not_validating"
            )
        case _:
            return []  # admitted before, or ended meanwhile


def _refuse(state: Requested, command: RefuseJob) -> list[Event]:
    match state:
        case Validating() | Queued():
            attempt = state.history.attempt
            return [JobFailed(attempt=attempt, code=command.code, message=command.message, retryable=False)]
        case Pending():
            raise Conflict(
                f"job {command.job_id} is not being validated; validate it first", code="not_validating"
            )
        case Assigned() | Preparing() | Running() | Stopping() | Finalizing():
            raise Conflict(f"job {command.job_id} is with an agent; stop it instead", code="already_assigned")
        case Succeeded() | Failed() | Cancelled():
            return []
        case _:
            assert_never(state)


def _claim(state: Requested, command: ClaimJob) -> list[Event]:
    if isinstance(state, Queued) and state.history.attempt == command.attempt:
        return [JobAssigned(attempt=command.attempt, agent_id=command.agent_id)]
    if holds(state, command.agent_id, command.attempt):
        return []
    raise offer_gone(command.job_id, command.attempt)


def _expire(state: Requested, command: ExpireLease) -> list[Event]:
    match state:
        case Assigned() | Preparing() | Running() | Stopping() | Finalizing():
            return job_endings.lease_expired(state) if state.history.attempt == command.attempt else []
        case _:
            return []  # that lease is gone already


def _stop(state: Requested, command: StopJob) -> list[Event]:
    requested = JobStopRequested(mode=command.mode, reason=command.reason)
    match state:
        case Pending() | Validating() | Queued() | Assigned():
            # Nothing has begun: an assigned agent learns of it with its next heartbeat.
            step = state.history.step
            return [JobStopped(attempt=state.history.attempt, step=step, reason=command.reason)]
        case Preparing() | Running():
            return [requested]
        case Stopping(stop=stop):
            hurry = stop.mode == "graceful" and command.mode == "immediate"
            return [requested] if hurry else []
        case Finalizing(stop=None):
            # The training is done and paid for: its result is kept.
            raise Conflict(
                f"job {command.job_id} has finished training and is storing its adapter;"
                " wait for it and delete the model if you do not want it",
                code="already_finalizing",
            )
        case Finalizing() | Cancelled():
            return []
        case Succeeded() | Failed():
            raise Conflict(
                f"job {command.job_id} has {state.phase} already; it cannot be stopped", code="job_ended"
            )
        case _:
            assert_never(state)
