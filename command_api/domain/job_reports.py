"""What the holder of an attempt may report, and what becomes of the job.

Measurements, checkpoints and logs are facts in every phase after the agent accepted. The reports that end
an attempt (declined, released, failed) are legal whenever it is held.
"""

from typing import Any, assert_never

from command_api.domain import job_endings
from command_api.domain.errors import Conflict
from command_api.domain.fencing import attempt_not_held
from command_api.domain.job_phases import (
    Assigned,
    Cancelled,
    Failed,
    Finalizing,
    Held,
    Holding,
    JobState,
    Preparing,
    Running,
    Stopping,
    Succeeded,
    holds,
)
from schemas import work
from schemas.commands.job import ReportAttempt
from schemas.events import Event
from schemas.events.job import (
    AdapterStored,
    AgentAccepted,
    CheckpointSaved,
    JobEvaluated,
    JobProgressed,
    JobStopped,
    JobSucceeded,
    LogSegmentStored,
    RankChanged,
    TrainingFinished,
    TrainingStarted,
    WarningRaised,
)
from schemas.ids import Prefix, derived_id


def output_model_id(job_id: str) -> str:
    """The model that the job's adapter becomes."""
    return derived_id(Prefix.MODEL, job_id, "adapter")


def decide_report(state: JobState, command: ReportAttempt) -> list[Event]:
    """A report by whoever holds the attempt; by anybody else it is refused with ``attempt_not_held``.

    Repeats that can be told from news make no event; all others are kept away by the reports' sequence.
    """
    report = command.report
    match state:
        case Assigned() | Preparing() | Running() | Stopping() | Finalizing():
            if holds(state, command.agent_id, report.attempt):
                return _decide(state, report)
        case Succeeded(last=last) | Failed(last=last) | Cancelled(last=last):
            if last == Holding(command.agent_id, report.attempt):
                return []  # the end was reported, and nothing can be added to it
        case _:
            pass
    raise attempt_not_held(report.item_id, command.agent_id, report.attempt)


def _decide(state: Held, report: work.Report) -> list[Event]:
    match report.body:
        case work.Accepted():
            return [AgentAccepted(attempt=report.attempt)] if isinstance(state, Assigned) else []
        case work.Started() as started:
            return _started(state, started)
        case work.Finished() as finished:
            return _finished(state, finished)
        case work.AdapterUploaded() as uploaded:
            return _adapter(state, report.item_id, uploaded)
        case work.Stopped() as stopped:
            if not isinstance(state, Stopping):
                raise _out_of_place(state, stopped)
            reason = state.stop.reason
            return [JobStopped(attempt=report.attempt, step=stopped.step, reason=reason)]
        case work.Declined(reason=reason):
            return job_endings.declined(state, reason)
        case work.Released(reason=reason):
            return job_endings.released(state, reason)
        case work.Failed(code=code, message=message, retryable=retryable):
            return job_endings.failed(state, code, message, retryable=retryable)
        case (
            work.Evaluated()
            | work.Reranked()
            | work.Progressed()
            | work.CheckpointStored()
            | work.LogStored()
            | work.Warned()
        ):
            return _noted(state, report.body)
        case work.DatasetJudged() | work.ModelJudged():
            raise _out_of_place(state, report.body)
        case _:
            assert_never(report.body)


def _started(state: Held, started: work.Started) -> list[Event]:
    match state:
        case Preparing() | Stopping(training=False):
            return [TrainingStarted(attempt=state.history.attempt, **_fields(started))]
        case Running() | Stopping() | Finalizing():
            return []
        case Assigned():
            raise _out_of_place(state, started)
        case _:
            assert_never(state)


def _finished(state: Held, finished: work.Finished) -> list[Event]:
    match state:
        case Running() | Stopping(training=True):
            return [TrainingFinished(attempt=state.history.attempt, **_fields(finished))]
        case Finalizing():
            return []
        case Assigned() | Preparing() | Stopping():
            raise _out_of_place(state, finished)
        case _:
            assert_never(state)


def _adapter(state: Held, job_id: str, uploaded: work.AdapterUploaded) -> list[Event]:
    """The whole adapter ends a finished training; a part of one is kept while stopping."""
    attempt = state.history.attempt
    stored = AdapterStored(
        attempt=attempt, objects=uploaded.objects, facts=uploaded.facts, partial=uploaded.partial
    )
    match state:
        case Finalizing() if not uploaded.partial:
            return [stored, JobSucceeded(attempt=attempt, output_model_id=output_model_id(job_id))]
        case Stopping(training=True, partial_adapter_stored=known) if uploaded.partial:
            return [] if known else [stored]
        case _:
            raise _out_of_place(state, uploaded)


Noted = (
    work.Evaluated | work.Reranked | work.Progressed | work.CheckpointStored | work.LogStored | work.Warned
)


def _noted(state: Held, body: Noted) -> list[Event]:
    attempt = state.history.attempt
    if isinstance(body, work.Reranked | work.Progressed | work.CheckpointStored) and not _has_trained(state):
        raise _out_of_place(state, body)
    match body:
        case work.Evaluated():
            return [JobEvaluated(attempt=attempt, **_fields(body))]
        case work.Reranked():
            return [RankChanged(attempt=attempt, **_fields(body))]
        case work.Progressed(step=step):
            if step <= state.history.step:
                return []
            return [JobProgressed(attempt=attempt, **_fields(body))]
        case work.CheckpointStored(step=step, objects=objects):
            last = state.history.checkpoint
            if last is not None and last.attempt == attempt and step <= last.step:
                return []
            return [CheckpointSaved(attempt=attempt, step=step, objects=objects)]
        case work.LogStored():
            return [LogSegmentStored(attempt=attempt, **_fields(body))]
        case work.Warned(code=code, message=message):
            return [WarningRaised(attempt=attempt, code=code, message=message)]
        case _:
            assert_never(body)


def _has_trained(state: Held) -> bool:
    return isinstance(state, Running | Finalizing) or (isinstance(state, Stopping) and state.training)


def _fields(body: work.ReportBody) -> dict[str, Any]:
    """The report's own fields, which the event has under the same names."""
    return {name: value for name, value in body if name != "kind"}


def _out_of_place(state: Held, body: work.ReportBody) -> Conflict:
    return Conflict(
        f"report {body.kind!r} cannot come while the job is {state.phase}; end the attempt",
        code="report_out_of_place",
    )
