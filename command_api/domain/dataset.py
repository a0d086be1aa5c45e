"""A dataset: declared, uploaded, validated by an agent, and then ready or rejected for good."""

from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias, assert_never

from command_api.domain.errors import Conflict, ImpossibleHistory, Invalid, NotFound
from command_api.domain.fencing import attempt_not_held, offer_gone
from command_api.domain.imports import (
    ImportFailed,
    Importing,
    Imports,
    being_imported,
)
from command_api.domain.validation import Tally, validation_failed
from schemas.api import Status
from schemas.commands.dataset import (
    ClaimDatasetValidation,
    CompleteDatasetImport,
    CompleteDatasetUpload,
    DeleteDataset,
    FailDatasetImport,
    InterruptDatasetValidation,
    JudgeDataset,
    RegisterDataset,
    RequestDatasetImport,
    RetryDatasetImport,
    StartDatasetUpload,
)
from schemas.events import Event
from schemas.events.dataset import (
    DatasetDeleted,
    DatasetImportFailed,
    DatasetImportRequested,
    DatasetImportRetried,
    DatasetRegistered,
    DatasetRejected,
    DatasetUploaded,
    DatasetUploadStarted,
    DatasetValidated,
    DatasetValidationInterrupted,
    DatasetValidationStarted,
)


@dataclass(frozen=True, slots=True)
class Absent:
    """Nothing was declared under this id."""


@dataclass(frozen=True, slots=True)
class Uploading:
    """Declared; its files are on their way, once an upload session is open."""

    phase: ClassVar[Status] = "uploading"
    registered: DatasetRegistered
    upload_id: str | None = None


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Whole in the store; waits for an agent that validates it."""

    phase: ClassVar[Status] = "uploaded"
    registered: DatasetRegistered
    upload_id: str
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True)
class Validating:
    """An agent decodes it; the attempt is `tally.attempts`."""

    phase: ClassVar[Status] = "validating"
    registered: DatasetRegistered
    upload_id: str
    tally: Tally
    agent_id: str


@dataclass(frozen=True, slots=True)
class Ready:
    """May be trained on."""

    phase: ClassVar[Status] = "ready"
    registered: DatasetRegistered
    upload_id: str
    validated: DatasetValidated


@dataclass(frozen=True, slots=True)
class Rejected:
    """Can never be trained on."""

    phase: ClassVar[Status] = "rejected"
    registered: DatasetRegistered
    upload_id: str
    rejected: DatasetRejected


@dataclass(frozen=True, slots=True)
class Deleted:
    """Closed to new jobs; those that pinned it go on."""

    phase: ClassVar[Status] = "deleted"
    registered: DatasetRegistered | None
    """None when it was still being imported."""


Declared: TypeAlias = (
    Importing | ImportFailed | Uploading | Uploaded | Validating | Ready | Rejected | Deleted
)
State: TypeAlias = Absent | Declared
INITIAL: State = Absent()

_IMPORTS = Imports("dataset", DatasetImportRequested, DatasetImportFailed, DatasetImportRetried)

DatasetCommand: TypeAlias = (
    RegisterDataset
    | StartDatasetUpload
    | CompleteDatasetUpload
    | ClaimDatasetValidation
    | InterruptDatasetValidation
    | JudgeDataset
    | DeleteDataset
    | RequestDatasetImport
    | CompleteDatasetImport
    | FailDatasetImport
    | RetryDatasetImport
)


def decide(state: State, command: DatasetCommand) -> list[Event]:
    if isinstance(command, RegisterDataset):
        return _register(state, command)
    if isinstance(command, RequestDatasetImport):
        return _IMPORTS.request(None if isinstance(state, Absent) else state, command.dataset_id, command)
    if isinstance(state, Absent):
        raise NotFound(f"dataset {command.dataset_id} does not exist")
    match command:
        case StartDatasetUpload():
            return _start_upload(state, command)
        case CompleteDatasetUpload():
            return _complete_upload(state, command)
        case ClaimDatasetValidation():
            return _claim(state, command)
        case InterruptDatasetValidation():
            return _interrupt(state, command)
        case JudgeDataset():
            return _judge(state, command)
        case CompleteDatasetImport():
            return _complete_import(state, command)
        case FailDatasetImport():
            return _IMPORTS.fail(state, command.dataset_id, command)
        case RetryDatasetImport():
            return _IMPORTS.retry(state, command.dataset_id)
        case DeleteDataset():
            return [] if isinstance(state, Deleted) else [DatasetDeleted()]
        case _:
            assert_never(command)


def evolve(state: State, event: Event) -> State:
    match state, event:
        case Absent(), DatasetRegistered():
            return Uploading(event)
        case Absent(), DatasetImportRequested():
            return Importing(event)
        case Importing(), DatasetImportFailed():
            return ImportFailed(state.requested, event)
        case ImportFailed(), DatasetImportRetried(attempt=attempt):
            return Importing(state.requested, attempt)
        case Importing(), DatasetRegistered():
            return Uploading(event)
        case Uploading(registered=registered), DatasetUploadStarted(upload_id=upload_id):
            return Uploading(registered, upload_id)
        case Uploading(registered=registered), DatasetUploaded(upload_id=upload_id):
            return Uploaded(registered, upload_id)
        case Uploaded(), DatasetValidationStarted(agent_id=agent_id, attempt=attempt):
            return Validating(state.registered, state.upload_id, state.tally.started(attempt), agent_id)
        case Validating(), DatasetValidationInterrupted(reason=reason):
            return Uploaded(state.registered, state.upload_id, state.tally.interrupted(reason))
        case Validating(), DatasetValidated():
            return Ready(state.registered, state.upload_id, event)
        case ((Validating() | Uploaded()), DatasetRejected()):
            return Rejected(state.registered, state.upload_id, event)
        case ((Importing() | ImportFailed()), DatasetDeleted()):
            return Deleted(None)
        case ((Uploading() | Uploaded() | Validating() | Ready() | Rejected()), DatasetDeleted()):
            return Deleted(state.registered)
        case _:
            raise ImpossibleHistory(state, event)


def holds(state: State, agent_id: str | None, attempt: int) -> bool:
    """Whether this agent, or with None any agent, holds this attempt now."""
    return (
        isinstance(state, Validating)
        and state.tally.attempts == attempt
        and agent_id in (None, state.agent_id)
    )


def _register(state: State, command: RegisterDataset) -> list[Event]:
    if command.file_count < 1 or command.size_bytes < 1:
        raise Invalid.field("/files", "empty_dataset", "a dataset needs at least one file that is not empty")
    registered = DatasetRegistered(
        name=command.name,
        description=command.description,
        format="video_text",
        owner_id=command.owner_id,
        listing=command.listing,
        file_count=command.file_count,
        size_bytes=command.size_bytes,
    )
    if isinstance(state, Absent):
        return [registered]
    if not isinstance(state, Importing | ImportFailed) and state.registered == registered:
        return []
    raise Conflict(f"dataset {command.dataset_id} exists already; use a new id", code="dataset_exists")


def _complete_import(state: Declared, command: CompleteDatasetImport) -> list[Event]:
    requested = _IMPORTS.running(state, command.dataset_id, command.attempt).requested
    register = RegisterDataset(
        dataset_id=command.dataset_id,
        name=requested.name,
        description=requested.description,
        owner_id=requested.owner_id,
        listing=command.listing,
        file_count=command.file_count,
        size_bytes=command.size_bytes,
    )
    return [*_register(Absent(), register), DatasetUploaded(upload_id=command.upload_id)]


def _start_upload(state: Declared, command: StartDatasetUpload) -> list[Event]:
    match state:
        case Uploading(upload_id=command.upload_id):
            return []
        case Uploading():
            return [DatasetUploadStarted(upload_id=command.upload_id)]
        case Deleted():
            raise _deleted(command.dataset_id)
        case Importing() | ImportFailed():
            raise being_imported(command.dataset_id, state)
        case _:
            raise Conflict(
                f"dataset {command.dataset_id} is {state.phase}: its files are complete and never change;"
                " register another dataset",
                code="already_uploaded",
            )


def _complete_upload(state: Declared, command: CompleteDatasetUpload) -> list[Event]:
    match state:
        case Uploading(upload_id=command.upload_id):
            return [DatasetUploaded(upload_id=command.upload_id)]
        case Deleted():
            raise _deleted(command.dataset_id)
        case Importing() | ImportFailed():
            raise being_imported(command.dataset_id, state)
        case _ if state.upload_id == command.upload_id:
            return []
        case _:
            raise Conflict(
                f"upload {command.upload_id} is not the open session of dataset {command.dataset_id};"
                " start an upload and complete that one",
                code="upload_not_open",
            )


def _claim(state: Declared, command: ClaimDatasetValidation) -> list[Event]:
    match state:
        case Uploaded(tally=tally) if tally.next_attempt == command.attempt:
            return [DatasetValidationStarted(agent_id=command.agent_id, attempt=command.attempt)]
        case Validating() if holds(state, command.agent_id, command.attempt):
            return []
        case _:
            raise offer_gone(command.dataset_id, command.attempt)


def _interrupt(state: Declared, command: InterruptDatasetValidation) -> list[Event]:
    if not isinstance(state, Validating) or not holds(state, command.agent_id, command.attempt):
        if command.agent_id is None:
            return []  # that lease is gone already
        raise attempt_not_held(command.dataset_id, command.agent_id, command.attempt)
    interrupted = DatasetValidationInterrupted(
        attempt=command.attempt, reason=command.reason, detail=command.detail
    )
    tally = state.tally.interrupted(command.reason)
    if not tally.given_up():
        return [interrupted]
    problem = validation_failed(tally, command.detail)
    return [interrupted, DatasetRejected(attempt=command.attempt, problems=(problem,))]


def _judge(state: Declared, command: JudgeDataset) -> list[Event]:
    match state:
        case Validating() if holds(state, command.agent_id, command.attempt):
            return [_verdict(command)]
        case Ready(validated=verdict) | Rejected(rejected=verdict) if verdict == _verdict(command):
            return []
        case _:
            raise attempt_not_held(command.dataset_id, command.agent_id, command.attempt)


def _verdict(command: JudgeDataset) -> DatasetValidated | DatasetRejected:
    if command.problems:
        return DatasetRejected(attempt=command.attempt, problems=command.problems)
    if command.facts is None or command.manifest is None:
        raise Invalid(
            f"the verdict on dataset {command.dataset_id} has neither problems nor both facts and manifest;"
            " report one of them",
            code="empty_verdict",
        )
    return DatasetValidated(
        attempt=command.attempt,
        facts=command.facts,
        manifest=command.manifest,
        content_sha256=command.manifest.sha256,
    )


def _deleted(dataset_id: str) -> Conflict:
    return Conflict(f"dataset {dataset_id} was deleted; register it again", code="dataset_deleted")
