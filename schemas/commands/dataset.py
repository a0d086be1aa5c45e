"""Commands on datasets."""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.commands.base import Command
from schemas.commands.imports import CompleteImport, FailImport, RequestImport, RetryImport
from schemas.datasets import DatasetFacts, Problem
from schemas.ids import AgentId, DatasetId, UserId
from schemas.objects import StoredObject


class RegisterDataset(Command):
    TYPE: ClassVar[str] = "register_dataset"
    dataset_id: DatasetId
    name: str
    description: str
    owner_id: UserId
    listing: StoredObject
    file_count: int
    size_bytes: int


class StartDatasetUpload(Command):
    TYPE: ClassVar[str] = "start_dataset_upload"
    dataset_id: DatasetId
    upload_id: str


class CompleteDatasetUpload(Command):
    """The store holds every declared file and each hash was verified."""

    TYPE: ClassVar[str] = "complete_dataset_upload"
    dataset_id: DatasetId
    upload_id: str


class ClaimDatasetValidation(Command):
    TYPE: ClassVar[str] = "claim_dataset_validation"
    dataset_id: DatasetId
    agent_id: AgentId
    attempt: int = Field(ge=1)


class InterruptDatasetValidation(Command):
    """The attempt ended without a verdict."""

    TYPE: ClassVar[str] = "interrupt_dataset_validation"
    dataset_id: DatasetId
    agent_id: AgentId | None = None
    """Who said so; None when the control plane itself found the lease expired."""
    attempt: int = Field(ge=1)
    reason: Literal["lease_expired", "released", "declined", "failed"]
    detail: str = ""


class JudgeDataset(Command):
    """`facts` and `manifest`, or `problems`."""

    TYPE: ClassVar[str] = "judge_dataset"
    dataset_id: DatasetId
    agent_id: AgentId
    attempt: int = Field(ge=1)
    facts: DatasetFacts | None = None
    manifest: StoredObject | None = None
    problems: tuple[Problem, ...] = Field((), max_length=100)


class DeleteDataset(Command):
    TYPE: ClassVar[str] = "delete_dataset"
    dataset_id: DatasetId


class RequestDatasetImport(RequestImport):
    TYPE: ClassVar[str] = "request_dataset_import"
    dataset_id: DatasetId


class CompleteDatasetImport(CompleteImport):
    TYPE: ClassVar[str] = "complete_dataset_import"
    dataset_id: DatasetId


class FailDatasetImport(FailImport):
    TYPE: ClassVar[str] = "fail_dataset_import"
    dataset_id: DatasetId


class RetryDatasetImport(RetryImport):
    TYPE: ClassVar[str] = "retry_dataset_import"
    dataset_id: DatasetId
