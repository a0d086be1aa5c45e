"""A base model from its declaration to its verdict, and adapters that jobs produced."""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.datasets import ModelFacts, Problem
from schemas.events.imports import ImportFailed, ImportRequested, ImportRetried
from schemas.events.registry import REGISTRY, Event
from schemas.ids import AgentId, JobId, ModelId, Sha256, UserId
from schemas.objects import StoredObject
from schemas.training import AdapterFacts


@REGISTRY.register
class ModelImportRequested(ImportRequested):
    """Somebody asked for a base model from elsewhere: `registered` and `uploaded` follow, or a failure."""

    TYPE: ClassVar[str] = "kinora.model.import_requested"


@REGISTRY.register
class ModelImportFailed(ImportFailed):
    """The files could not be had, or are not usable."""

    TYPE: ClassVar[str] = "kinora.model.import_failed"


@REGISTRY.register
class ModelImportRetried(ImportRetried):
    """Another try at a failed import."""

    TYPE: ClassVar[str] = "kinora.model.import_retried"


@REGISTRY.register
class ModelRegistered(Event):
    """Somebody declared a base model and its files."""

    TYPE: ClassVar[str] = "kinora.model.registered"
    name: str
    description: str
    owner_id: UserId
    listing: StoredObject
    """A `schemas.objects.Listing` as JSON: every declared file by path, size and hash."""
    file_count: int = Field(ge=1)
    size_bytes: int = Field(ge=1)


@REGISTRY.register
class ModelUploadStarted(Event):
    """An upload session was opened for the declared files."""

    TYPE: ClassVar[str] = "kinora.model.upload_started"
    upload_id: str


@REGISTRY.register
class ModelUploaded(Event):
    """Every file is in the store and its hash is verified; the model waits for validation."""

    TYPE: ClassVar[str] = "kinora.model.uploaded"
    upload_id: str


@REGISTRY.register
class ModelValidationStarted(Event):
    """An agent took the model for validation; `attempt` fences its report."""

    TYPE: ClassVar[str] = "kinora.model.validation_started"
    agent_id: AgentId
    attempt: int = Field(ge=1)


@REGISTRY.register
class ModelValidationInterrupted(Event):
    """The validating agent was lost or gave up; the model waits for another."""

    TYPE: ClassVar[str] = "kinora.model.validation_interrupted"
    attempt: int = Field(ge=1)
    reason: Literal["lease_expired", "released", "declined", "failed"]
    detail: str = ""


@REGISTRY.register
class ModelValidated(Event):
    """The model loads, quantises and belongs to a supported family."""

    TYPE: ClassVar[str] = "kinora.model.validated"
    attempt: int = Field(ge=1)
    facts: ModelFacts
    content_sha256: Sha256
    """SHA-256 over the sorted `path:sha256` lines of its files."""


@REGISTRY.register
class ModelRejected(Event):
    """The model cannot be trained; every problem found is listed."""

    TYPE: ClassVar[str] = "kinora.model.rejected"
    attempt: int = Field(ge=0)
    problems: tuple[Problem, ...] = Field(min_length=1, max_length=100)


@REGISTRY.register
class AdapterRegistered(Event):
    """A job's adapter became a model of its own, ready to use."""

    TYPE: ClassVar[str] = "kinora.model.adapter_registered"
    name: str
    owner_id: UserId
    job_id: JobId
    base_model_id: ModelId
    objects: tuple[StoredObject, ...]
    facts: AdapterFacts
    content_sha256: Sha256


@REGISTRY.register
class ModelDeleted(Event):
    """Hidden from views and from new jobs; running jobs keep what they pinned."""

    TYPE: ClassVar[str] = "kinora.model.deleted"
