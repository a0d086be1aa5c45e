"""Commands on jobs."""

from typing import ClassVar

from pydantic import Field

from schemas.commands.base import Command
from schemas.events.job import Priority, StopMode
from schemas.footprint import Preflight
from schemas.ids import AgentId, DatasetId, JobId, ModelId, UserId
from schemas.training import Hyperparameters
from schemas.work import Report


class RequestJob(Command):
    """Ask for a training. The handler looks dataset and model up and pins what it finds."""

    TYPE: ClassVar[str] = "request_job"
    job_id: JobId
    name: str
    owner_id: UserId
    dataset_id: DatasetId
    model_id: ModelId
    hyperparameters: Hyperparameters
    pool: str
    priority: Priority
    labels: dict[str, str]
    max_attempts: int = Field(5, ge=1, le=100)
    """How many attempts may fail or lose their agent; the last of them fails the job."""


class ValidateJob(Command):
    """Begin the check of a requested job."""

    TYPE: ClassVar[str] = "validate_job"
    job_id: JobId


class AdmitJob(Command):
    """The check passed: record the plan and queue attempt 1."""

    TYPE: ClassVar[str] = "admit_job"
    job_id: JobId
    total_steps: int = Field(ge=1)
    training_examples: int = Field(ge=1)
    held_out_examples: int = Field(ge=0)
    epochs: float | None = Field(gt=0)
    preflight: Preflight | None = None


class RefuseJob(Command):
    """The check failed, or the queued job can never run, for instance because no agent is able to."""

    TYPE: ClassVar[str] = "refuse_job"
    job_id: JobId
    code: str
    message: str


class ClaimJob(Command):
    """An agent asks for the queued attempt; asked again, the answer is the same."""

    TYPE: ClassVar[str] = "claim_job"
    job_id: JobId
    agent_id: AgentId
    attempt: int = Field(ge=1)


class ReportAttempt(Command):
    """What an agent reported of the attempt that it holds, of a job or of a validation."""

    TYPE: ClassVar[str] = "report_attempt"
    agent_id: AgentId
    report: Report


class ExpireLease(Command):
    """The agent was silent for a whole lease."""

    TYPE: ClassVar[str] = "expire_lease"
    job_id: JobId
    attempt: int = Field(ge=1)


class StopJob(Command):
    """Cancel, in any phase before a terminal one."""

    TYPE: ClassVar[str] = "stop_job"
    job_id: JobId
    mode: StopMode
    reason: str
