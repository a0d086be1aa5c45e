"""The phases of a job, and what is remembered through all of them."""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from schemas.events.job import JobFailed, JobPlanned, JobQueued, JobRequested, JobSucceeded, StopMode
from schemas.job_status import JobPhase
from schemas.objects import StoredObject

KEPT_CHECKPOINTS = 2
"""One more than is needed: the newest may turn out to be damaged."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The newest training state that is whole in the store."""

    attempt: int
    """The attempt that wrote it; its objects lie under that attempt's prefix."""
    step: int
    objects: tuple[StoredObject, ...]


@dataclass(frozen=True, slots=True)
class StopIntent:
    """Somebody asked for the end of the job, and how."""

    mode: StopMode
    reason: str


@dataclass(frozen=True, slots=True)
class History:
    """What every phase after the request knows."""

    request: JobRequested
    plan: JobPlanned | None = None
    total_steps: int = 0
    """The plan's estimate, until TrainingStarted brings the exact number."""
    attempt: int = 0
    """The newest attempt number; 0 before the first queueing. Never used twice."""
    failures: int = 0
    """Attempts that failed or lost their agent. Orderly releases and declines do not count."""
    fruitless: int = 0
    """Attempts in a row that were declined or given back before they trained: they do not count as failures,
    so only growing pauses keep them from going round and round."""
    step: int = 0
    """The last step reported by the current attempt, or the one that it goes on from."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """The newest ones that an attempt may go on from, oldest first; at most `KEPT_CHECKPOINTS`."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def resume_step(self) -> int:
        """Where a new attempt goes on: the checkpoint's step, or the beginning."""
        return 0 if self.checkpoint is None else self.checkpoint.step


@dataclass(frozen=True, slots=True)
class Absent:
    """Nobody has requested this job."""

    phase: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Pending:
    """Requested."""

    phase: ClassVar[JobPhase] = "pending"
    history: History


@dataclass(frozen=True, slots=True)
class Validating:
    """Inputs and parameters are being checked against each other."""

    phase: ClassVar[JobPhase] = "validating"
    history: History


@dataclass(frozen=True, slots=True)
class Queued:
    """Attempt `history.attempt` waits for an agent."""

    phase: ClassVar[JobPhase] = "queued"
    history: History
    queued: JobQueued
    """Its `not_before_seconds` count from the time of that event."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """An agent's claim was granted; nothing has begun."""

    phase: ClassVar[JobPhase] = "assigned"
    history: History
    agent_id: str


@dataclass(frozen=True, slots=True)
class Preparing:
    """The agent stages inputs and loads the model."""

    phase: ClassVar[JobPhase] = "preparing"
    history: History
    agent_id: str


@dataclass(frozen=True, slots=True)
class Running:
    """Steps are being taken."""

    phase: ClassVar[JobPhase] = "running"
    history: History
    agent_id: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """The agent has been told to stop, and has not answered yet."""

    phase: ClassVar[JobPhase] = "stopping"
    history: History
    agent_id: str
    stop: StopIntent
    training: bool
    """Training has started, before the stop or after it."""
    partial_adapter_stored: bool = False


@dataclass(frozen=True, slots=True)
class Finalizing:
    """The last step is taken; artifacts are being stored."""

    phase: ClassVar[JobPhase] = "finalizing"
    history: History
    agent_id: str
    stop: StopIntent | None = None
    """A stop that came too late. It is carried out only if this attempt is lost after all."""
    adapter_stored: bool = False


@dataclass(frozen=True, slots=True)
class Holding:
    """Which agent's report ended a job, so that its repeats are told from stale reports."""

    agent_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Succeeded:
    """Terminal: every artifact exists."""

    phase: ClassVar[JobPhase] = "succeeded"
    history: History
    last: Holding | None
    ended: JobSucceeded


@dataclass(frozen=True, slots=True)
class Failed:
    """Terminal."""

    phase: ClassVar[JobPhase] = "failed"
    history: History
    last: Holding | None
    ended: JobFailed


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Terminal, by intent."""

    phase: ClassVar[JobPhase] = "cancelled"
    history: History
    last: Holding | None


Held: TypeAlias = Assigned | Preparing | Running | Stopping | Finalizing
"""An agent holds attempt `history.attempt`."""
Waiting: TypeAlias = Pending | Validating | Queued
"""No agent is involved."""
Ended: TypeAlias = Succeeded | Failed | Cancelled
Requested: TypeAlias = Waiting | Held | Ended
JobState: TypeAlias = Absent | Requested


def holds(state: JobState, agent_id: str, attempt: int) -> bool:
    """Whether this agent holds this attempt now: the fence of everything that it says and is given."""
    match state:
        case Assigned() | Preparing() | Running() | Stopping() | Finalizing():
            return state.agent_id == agent_id and state.history.attempt == attempt
        case _:
            return False


def stop_intent(state: Held) -> StopIntent | None:
    """The stop that waits to be carried out."""
    match state:
        case Stopping(stop=stop) | Finalizing(stop=stop):
            return stop
        case _:
            return None


def before_training(state: Held) -> bool:
    """Whether the attempt has not taken a step yet."""
    match state:
        case Assigned() | Preparing():
            return True
        case Stopping(training=training):
            return not training
        case Running() | Finalizing():
            return False
