"""A dataset from its declaration to its verdict."""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.datasets import DatasetFacts, Problem
from schemas.events.imports import ImportFailed, ImportRequested, ImportRetried
from schemas.events.registry import REGISTRY, Event
from schemas.ids import AgentId, Sha256, UserId
from schemas.objects import StoredObject


@REGISTRY.register
class DatasetImportRequested(ImportRequested):
    """Somebody asked for a dataset from elsewhere: `registered` and `uploaded` follow, or a failure."""

    TYPE: ClassVar[str] = "kinora.dataset.import_requested"


@REGISTRY.register
class DatasetImportFailed(ImportFailed):
    """The files could not be had, or are not usable."""

    TYPE: ClassVar[str] = "kinora.dataset.import_failed"


@REGISTRY.register
class DatasetImportRetried(ImportRetried):
    """Another try at a failed import."""

    TYPE: ClassVar[str] = "kinora.dataset.import_retried"


@REGISTRY.register
class DatasetRegistered(Event):
    """Somebody declared a dataset and the files it will consist of."""

    TYPE: ClassVar[str] = "kinora.dataset.registered"
    name: str
    description: str
    format: Literal["video_text"]
    owner_id: UserId
    listing: StoredObject
    """A `schemas.objects.Listing` as JSON: every declared file by path, size and hash."""
    file_count: int = Field(ge=1)
    size_bytes: int = Field(ge=1)


@REGISTRY.register
class DatasetUploadStarted(Event):
    """An upload session was opened for the declared files."""

    TYPE: ClassVar[str] = "kinora.dataset.upload_started"
    upload_id: str


@REGISTRY.register
class DatasetUploaded(Event):
    """Every file is in the store and its hash is verified; the dataset waits for validation."""

    TYPE: ClassVar[str] = "kinora.dataset.uploaded"
    upload_id: str


@REGISTRY.register
class DatasetValidationStarted(Event):
    """An agent took the dataset for validation; `attempt` fences its report."""

    TYPE: ClassVar[str] = "kinora.dataset.validation_started"
    agent_id: AgentId
    attempt: int = Field(ge=1)


@REGISTRY.register
class DatasetValidationInterrupted(Event):
    """The validating agent was lost or gave up; the dataset waits for another."""

    TYPE: ClassVar[str] = "kinora.dataset.validation_interrupted"
    attempt: int = Field(ge=1)
    reason: Literal["lease_expired", "released", "declined", "failed"]
    detail: str = ""


@REGISTRY.register
class DatasetValidated(Event):
    """The dataset can be trained on; the facts name the rows and clips that were left out, if any."""

    TYPE: ClassVar[str] = "kinora.dataset.validated"
    attempt: int = Field(ge=1)
    facts: DatasetFacts
    manifest: StoredObject
    content_sha256: Sha256
    """SHA-256 of the manifest's bytes: names clips by hash and examples in order."""


@REGISTRY.register
class DatasetRejected(Event):
    """The dataset cannot be trained on; every problem found is listed, at most 100."""

    TYPE: ClassVar[str] = "kinora.dataset.rejected"
    attempt: int = Field(ge=0)
    """0 when it was refused before any agent saw it."""
    problems: tuple[Problem, ...] = Field(min_length=1, max_length=100)


@REGISTRY.register
class DatasetDeleted(Event):
    """Hidden from views and from new jobs; running jobs keep what they pinned."""

    TYPE: ClassVar[str] = "kinora.dataset.deleted"
