"""The phases of a job, what each event makes of them, and the vocabularies that other APIs use for them.

The domain and the read side share this, so that a job's status means the same on both.
"""

from typing import Literal, assert_never, get_args

from schemas.events import Event
from schemas.events.job import (
    AgentAccepted,
    JobAssigned,
    JobFailed,
    JobQueued,
    JobRequested,
    JobStopped,
    JobStopRequested,
    JobSucceeded,
    JobValidationStarted,
    TrainingFinished,
    TrainingStarted,
)

JobPhase = Literal[
    "pending",
    "validating",
    "queued",
    "assigned",
    "preparing",
    "running",
    "stopping",
    "finalizing",
    "succeeded",
    "failed",
    "cancelled",
]
PHASES: tuple[JobPhase, ...] = get_args(JobPhase)
TERMINAL_PHASES: frozenset[JobPhase] = frozenset(("succeeded", "failed", "cancelled"))
HELD_PHASES: frozenset[JobPhase] = frozenset(("assigned", "preparing", "running", "stopping", "finalizing"))
"""An agent holds the current attempt."""

SimpleStatus = Literal["pending", "validating", "queued", "running", "succeeded", "failed", "cancelled"]
TrainingStatus = Literal["queued", "running", "completed", "failed", "stopped"]
UpperStatus = Literal["PENDING", "QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"]
OpenAiStatus = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]


def phase_after(phase: JobPhase | None, event: Event) -> JobPhase | None:
    """The phase once `event` has happened in `phase`; None before a job's first event.

    Total: an event that is no phase change, or not a job's at all, leaves the phase as it was. The end of
    an attempt (lease expired, released, declined, failed) changes nothing by itself: what follows it in
    the same transaction does.
    """
    if phase == "stopping" and type(event) is TrainingStarted:
        return phase
    return _PHASE_AFTER.get(type(event), phase)


# Every event of every job comes by here: a look-up takes a tenth of the time of a `match`.
_PHASE_AFTER: dict[type[Event], JobPhase] = {
    JobRequested: "pending",
    JobValidationStarted: "validating",
    JobQueued: "queued",
    JobAssigned: "assigned",
    AgentAccepted: "preparing",
    TrainingStarted: "running",
    JobStopRequested: "stopping",
    TrainingFinished: "finalizing",
    JobSucceeded: "succeeded",
    JobFailed: "failed",
    JobStopped: "cancelled",
}


def simple_status(phase: JobPhase) -> SimpleStatus:
    """Seven words for `/fine-tuning/jobs`."""
    match phase:
        case "pending" | "validating" | "queued" | "succeeded" | "failed" | "cancelled":
            return phase
        case "assigned":
            return "queued"
        case "preparing" | "running" | "stopping" | "finalizing":
            return "running"
        case _:
            assert_never(phase)


def training_status(phase: JobPhase) -> TrainingStatus:
    """Five words for `/trainings`."""
    match phase:
        case "pending" | "validating" | "queued" | "assigned":
            return "queued"
        case "preparing" | "running" | "stopping" | "finalizing":
            return "running"
        case "succeeded":
            return "completed"
        case "failed":
            return "failed"
        case "cancelled":
            return "stopped"
        case _:
            assert_never(phase)


def upper_status(phase: JobPhase) -> UpperStatus:
    """Six capitalised words for the `/jobs` alias."""
    match phase:
        case "pending" | "validating":
            return "PENDING"
        case "queued" | "assigned":
            return "QUEUED"
        case "preparing" | "running" | "stopping" | "finalizing":
            return "RUNNING"
        case "succeeded":
            return "COMPLETED"
        case "failed":
            return "FAILED"
        case "cancelled":
            return "CANCELLED"
        case _:
            assert_never(phase)


def openai_status(phase: JobPhase) -> OpenAiStatus:
    """The words of OpenAI's fine-tuning API."""
    match phase:
        case "pending" | "validating":
            return "validating_files"
        case "queued" | "assigned":
            return "queued"
        case "preparing" | "running" | "stopping" | "finalizing":
            return "running"
        case "succeeded" | "failed" | "cancelled":
            return phase
        case _:
            assert_never(phase)
