"""How an attempt without success ends: a stop is carried out, another attempt follows, or the job fails."""

from dataclasses import replace
from typing import Literal

from command_api.domain.job_phases import Held, History, before_training, stop_intent
from schemas import training
from schemas.events import Event
from schemas.events.job import (
    AgentDeclined,
    AttemptFailed,
    AttemptReleased,
    JobFailed,
    JobQueued,
    JobStopped,
    LeaseExpired,
    WarningRaised,
)

LONGEST_BACKOFF_SECONDS = 60.0
FRUITLESS_BACKOFF_SECONDS = 5.0
LONGEST_FRUITLESS_BACKOFF_SECONDS = 300.0
FRUITLESS_WARNED = 3
"""So many attempts in a row that nobody wanted are worth a warning."""


def lease_expired(state: Held) -> list[Event]:
    """Nothing was heard of the agent for a whole lease."""
    event = LeaseExpired(attempt=state.history.attempt, agent_id=state.agent_id)
    if stopped := _carry_out_stop(state):
        return [event, stopped]
    if _last_chance(state.history):
        return [event, _exhausted(state.history, "the agent was lost (node_lost)")]
    # At once the first time: the agent's end is rarely the job's fault. A job that loses one after the other
    # waits as after any failure.
    failures = state.history.failures
    return [event, _requeue(state.history, "lease_expired", backoff_seconds(failures) if failures else 0.0)]


def released(state: Held, reason: str) -> list[Event]:
    """The agent gave the attempt back in order."""
    event = AttemptReleased(attempt=state.history.attempt, reason=reason)
    if stopped := _carry_out_stop(state):
        return [event, stopped]
    # At once the first time: an agent that restarts gives its job back once.
    known = state.history.fruitless
    pause = fruitless_backoff_seconds(known - 1) if before_training(state) and known else 0.0
    return [*_nobody_wants(state, reason), event, _requeue(state.history, "released", pause)]


def declined(state: Held, reason: str) -> list[Event]:
    """The agent cannot take the attempt."""
    event = AgentDeclined(attempt=state.history.attempt, reason=reason)
    if stopped := _carry_out_stop(state):
        return [event, stopped]
    pause = fruitless_backoff_seconds(state.history.fruitless)
    return [*_nobody_wants(state, reason), event, _requeue(state.history, "declined", pause)]


def failed(state: Held, code: str, message: str, *, retryable: bool) -> list[Event]:
    """The engine or the agent failed."""
    event = AttemptFailed(attempt=state.history.attempt, code=code, message=message)
    if stopped := _carry_out_stop(state):
        return [event, stopped]
    if not retryable:
        return [JobFailed(attempt=state.history.attempt, code=code, message=message, retryable=False)]
    if _last_chance(state.history):
        return [event, _exhausted(state.history, f"{code}: {message}")]
    usable = _still_usable(state.history, code)
    return [event, _requeue(usable, "retry", backoff_seconds(state.history.failures + 1))]


def backoff_seconds(failures: int) -> float:
    """The pause before the next attempt, doubling with each counted failure."""
    return min(LONGEST_BACKOFF_SECONDS, 2.0 ** min(failures, 10))


def fruitless_backoff_seconds(fruitless: int) -> float:
    """The pause after an attempt that came to nothing, when `fruitless` did so before it."""
    return min(LONGEST_FRUITLESS_BACKOFF_SECONDS, FRUITLESS_BACKOFF_SECONDS * 2.0 ** min(fruitless, 10))


def _nobody_wants(state: Held, reason: str) -> list[Event]:
    history = state.history
    if not before_training(state) or history.fruitless + 1 != FRUITLESS_WARNED:
        return []
    message = (
        f"no agent accepts the job: {FRUITLESS_WARNED} in a row turned it down, the last one because"
        f" {reason!r}. It is offered again after growing pauses; put the reason right, or add an agent"
        f" that fits to pool {history.request.pool!r}"
    )
    return [WarningRaised(attempt=history.attempt, code="no_agent_accepts", message=message)]


def _still_usable(history: History, code: str) -> History:
    """Without the checkpoints that an attempt with this failure has proved to be of no use."""
    match code:
        case training.CHECKPOINT_UNUSABLE:
            return replace(history, checkpoints=history.checkpoints[:-1])
        case training.CHECKPOINT_MISMATCH:
            return replace(history, checkpoints=())
        case _:
            return history


def _carry_out_stop(state: Held) -> JobStopped | None:
    """A job that was asked to stop never gets another attempt, however the present one ended."""
    intent = stop_intent(state)
    if intent is None:
        return None
    return JobStopped(attempt=state.history.attempt, step=state.history.step, reason=intent.reason)


def _last_chance(history: History) -> bool:
    return history.failures + 1 >= history.request.max_attempts


def _requeue(
    history: History,
    reason: Literal["declined", "lease_expired", "released", "retry"],
    not_before_seconds: float = 0.0,
) -> JobQueued:
    return JobQueued(
        attempt=history.attempt + 1,
        reason=reason,
        not_before_seconds=not_before_seconds,
        resume_step=history.resume_step,
    )


def _exhausted(history: History, last: str) -> JobFailed:
    count = history.request.max_attempts
    return JobFailed(
        attempt=history.attempt,
        code="attempts_exhausted",
        message=f"{count} of {count} attempts failed; the last one: {last}",
        retryable=True,
    )
