"""Commands on jobs."""

from typing import ClassVar

from schemas.commands.base import Command
from schemas.events.job import PinnedInput, Priority, StopMode
from schemas.ids import AgentId, DatasetId, JobId, ModelId, UserId
from schemas.objects import StoredObject
from schemas.training import Hyperparameters
from schemas.work import Report


class RequestJob(Command):
    """Ask for a training. The handler looked dataset and model up and pinned what it found."""

    TYPE: ClassVar[str] = "request_job"
    job_id: JobId
    name: str
    owner_id: UserId
    dataset_id: DatasetId
    model_id: ModelId
    dataset: PinnedInput
    model: PinnedInput
    manifest: StoredObject
    hyperparameters: Hyperparameters
    pool: str
    priority: Priority
    labels: dict[str, str]
    max_attempts: int = 5


class ValidateJob(Command):
    """Begin the check of a requested job."""

    TYPE: ClassVar[str] = "validate_job"
    job_id: JobId


class AdmitJob(Command):
    """The check passed: record the plan and queue attempt 1."""

    TYPE: ClassVar[str] = "admit_job"
    job_id: JobId
    total_steps: int
    training_examples: int
    held_out_examples: int
    epochs: float


class RefuseJob(Command):
    """The check failed."""

    TYPE: ClassVar[str] = "refuse_job"
    job_id: JobId
    code: str
    message: str


class ClaimJob(Command):
    """An agent asks for the queued attempt; asked again, the answer is the same."""

    TYPE: ClassVar[str] = "claim_job"
    job_id: JobId
    agent_id: AgentId
    attempt: int


class ReportAttempt(Command):
    """What an agent reported of the attempt that it holds."""

    TYPE: ClassVar[str] = "report_attempt"
    agent_id: AgentId
    report: Report


class ExpireLease(Command):
    """The agent was silent for a whole lease."""

    TYPE: ClassVar[str] = "expire_lease"
    job_id: JobId
    attempt: int


class StopJob(Command):
    """Cancel, in any phase before a terminal one."""

    TYPE: ClassVar[str] = "stop_job"
    job_id: JobId
    mode: StopMode
    reason: str
