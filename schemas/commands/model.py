"""Commands on models."""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.commands.base import Command
from schemas.commands.imports import CompleteImport, FailImport, RequestImport, RetryImport
from schemas.datasets import ModelFacts, Problem
from schemas.ids import AgentId, JobId, ModelId, Sha256, UserId
from schemas.objects import StoredObject
from schemas.training import AdapterFacts


class RegisterModel(Command):
    TYPE: ClassVar[str] = "register_model"
    model_id: ModelId
    name: str
    description: str
    owner_id: UserId
    listing: StoredObject
    file_count: int
    size_bytes: int


class StartModelUpload(Command):
    TYPE: ClassVar[str] = "start_model_upload"
    model_id: ModelId
    upload_id: str


class CompleteModelUpload(Command):
    """The store holds every declared file and each hash was verified."""

    TYPE: ClassVar[str] = "complete_model_upload"
    model_id: ModelId
    upload_id: str


class ClaimModelValidation(Command):
    TYPE: ClassVar[str] = "claim_model_validation"
    model_id: ModelId
    agent_id: AgentId
    attempt: int = Field(ge=1)


class InterruptModelValidation(Command):
    """The attempt ended without a verdict."""

    TYPE: ClassVar[str] = "interrupt_model_validation"
    model_id: ModelId
    agent_id: AgentId | None = None
    """Who said so; None when the control plane itself found the lease expired."""
    attempt: int = Field(ge=1)
    reason: Literal["lease_expired", "released", "declined", "failed"]
    detail: str = ""


class JudgeModel(Command):
    """`facts`, or `problems`."""

    TYPE: ClassVar[str] = "judge_model"
    model_id: ModelId
    agent_id: AgentId
    attempt: int = Field(ge=1)
    facts: ModelFacts | None = None
    content_sha256: Sha256 | None = None
    problems: tuple[Problem, ...] = Field((), max_length=100)


class RegisterAdapter(Command):
    """Make a finished job's adapter a model; its id derives from the job's."""

    TYPE: ClassVar[str] = "register_adapter"
    model_id: ModelId
    name: str
    owner_id: UserId
    job_id: JobId
    base_model_id: ModelId
    objects: tuple[StoredObject, ...]
    facts: AdapterFacts


class DeleteModel(Command):
    TYPE: ClassVar[str] = "delete_model"
    model_id: ModelId


class RequestModelImport(RequestImport):
    TYPE: ClassVar[str] = "request_model_import"
    model_id: ModelId


class CompleteModelImport(CompleteImport):
    TYPE: ClassVar[str] = "complete_model_import"
    model_id: ModelId


class FailModelImport(FailImport):
    TYPE: ClassVar[str] = "fail_model_import"
    model_id: ModelId


class RetryModelImport(RetryImport):
    TYPE: ClassVar[str] = "retry_model_import"
    model_id: ModelId
