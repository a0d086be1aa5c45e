"""A model: a base model that was uploaded and validated, or an adapter that a job produced."""

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
from schemas.commands.model import (
    ClaimModelValidation,
    CompleteModelImport,
    CompleteModelUpload,
    DeleteModel,
    FailModelImport,
    InterruptModelValidation,
    JudgeModel,
    RegisterAdapter,
    RegisterModel,
    RequestModelImport,
    RetryModelImport,
    StartModelUpload,
)
from schemas.events import Event
from schemas.events.model import (
    AdapterRegistered,
    ModelDeleted,
    ModelImportFailed,
    ModelImportRequested,
    ModelImportRetried,
    ModelRegistered,
    ModelRejected,
    ModelUploaded,
    ModelUploadStarted,
    ModelValidated,
    ModelValidationInterrupted,
    ModelValidationStarted,
)
from schemas.objects import content_sha256


@dataclass(frozen=True, slots=True)
class Absent:
    """Nothing was declared under this id."""


@dataclass(frozen=True, slots=True)
class Uploading:
    """Declared; its files are on their way, once an upload session is open."""

    phase: ClassVar[Status] = "uploading"
    registered: ModelRegistered
    upload_id: str | None = None


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Whole in the store; waits for an agent that validates it."""

    phase: ClassVar[Status] = "uploaded"
    registered: ModelRegistered
    upload_id: str
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True)
class Validating:
    """An agent loads it; the attempt is `tally.attempts`."""

    phase: ClassVar[Status] = "validating"
    registered: ModelRegistered
    upload_id: str
    tally: Tally
    agent_id: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A base model that jobs may train."""

    phase: ClassVar[Status] = "ready"
    registered: ModelRegistered
    upload_id: str
    validated: ModelValidated


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a finished job made: ready to use, never a base of another job."""

    phase: ClassVar[Status] = "ready"
    registered: AdapterRegistered


@dataclass(frozen=True, slots=True)
class Rejected:
    """Can never be trained."""

    phase: ClassVar[Status] = "rejected"
    registered: ModelRegistered
    upload_id: str
    rejected: ModelRejected


@dataclass(frozen=True, slots=True)
class Deleted:
    """Closed to new jobs; those that pinned it go on."""

    phase: ClassVar[Status] = "deleted"
    registered: ModelRegistered | AdapterRegistered | None
    """None when it was still being imported."""


Declared: TypeAlias = (
    Importing | ImportFailed | Uploading | Uploaded | Validating | Ready | Rejected | Adapter | Deleted
)
State: TypeAlias = Absent | Declared
INITIAL: State = Absent()

_IMPORTS = Imports("model", ModelImportRequested, ModelImportFailed, ModelImportRetried)

ModelCommand: TypeAlias = (
    RegisterModel
    | StartModelUpload
    | CompleteModelUpload
    | ClaimModelValidation
    | InterruptModelValidation
    | JudgeModel
    | RegisterAdapter
    | DeleteModel
    | RequestModelImport
    | CompleteModelImport
    | FailModelImport
    | RetryModelImport
)


def decide(state: State, command: ModelCommand) -> list[Event]:
    if isinstance(command, RegisterModel):
        return _register(state, command)
    if isinstance(command, RegisterAdapter):
        return _register_adapter(state, command)
    if isinstance(command, RequestModelImport):
        return _IMPORTS.request(None if isinstance(state, Absent) else state, command.model_id, command)
    if isinstance(state, Absent):
        raise NotFound(f"model {command.model_id} does not exist")
    match command:
        case StartModelUpload():
            return _start_upload(state, command)
        case CompleteModelUpload():
            return _complete_upload(state, command)
        case ClaimModelValidation():
            return _claim(state, command)
        case InterruptModelValidation():
            return _interrupt(state, command)
        case JudgeModel():
            return _judge(state, command)
        case CompleteModelImport():
            return _complete_import(state, command)
        case FailModelImport():
            return _IMPORTS.fail(state, command.model_id, command)
        case RetryModelImport():
            return _IMPORTS.retry(state, command.model_id)
        case DeleteModel():
            return [] if isinstance(state, Deleted) else [ModelDeleted()]
        case _:
            assert_never(command)


def evolve(state: State, event: Event) -> State:
    match state, event:
        case Absent(), ModelRegistered():
            return Uploading(event)
        case Absent(), AdapterRegistered():
            return Adapter(event)
        case Absent(), ModelImportRequested():
            return Importing(event)
        case Importing(), ModelImportFailed():
            return ImportFailed(state.requested, event)
        case ImportFailed(), ModelImportRetried(attempt=attempt):
            return Importing(state.requested, attempt)
        case Importing(), ModelRegistered():
            return Uploading(event)
        case Uploading(registered=registered), ModelUploadStarted(upload_id=upload_id):
            return Uploading(registered, upload_id)
        case Uploading(registered=registered), ModelUploaded(upload_id=upload_id):
            return Uploaded(registered, upload_id)
        case Uploaded(), ModelValidationStarted(agent_id=agent_id, attempt=attempt):
            return Validating(state.registered, state.upload_id, state.tally.started(attempt), agent_id)
        case Validating(), ModelValidationInterrupted(reason=reason):
            return Uploaded(state.registered, state.upload_id, state.tally.interrupted(reason))
        case Validating(), ModelValidated():
            return Ready(state.registered, state.upload_id, event)
        case ((Validating() | Uploaded()), ModelRejected()):
            return Rejected(state.registered, state.upload_id, event)
        case ((Importing() | ImportFailed()), ModelDeleted()):
            return Deleted(None)
        case ((Uploading() | Uploaded() | Validating() | Ready() | Rejected() | Adapter()), ModelDeleted()):
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


def _register(state: State, command: RegisterModel) -> list[Event]:
    if command.file_count < 1 or command.size_bytes < 1:
        raise Invalid.field("/files", "empty_model", "a model needs at least one file that is not empty")
    registered = ModelRegistered(
        name=command.name,
        description=command.description,
        owner_id=command.owner_id,
        listing=command.listing,
        file_count=command.file_count,
        size_bytes=command.size_bytes,
    )
    if isinstance(state, Absent):
        return [registered]
    if not isinstance(state, Importing | ImportFailed) and state.registered == registered:
        return []
    raise Conflict(f"model {command.model_id} exists already; use a new id", code="model_exists")


def _register_adapter(state: State, command: RegisterAdapter) -> list[Event]:
    registered = AdapterRegistered(
        name=command.name,
        owner_id=command.owner_id,
        job_id=command.job_id,
        base_model_id=command.base_model_id,
        objects=command.objects,
        facts=command.facts,
        content_sha256=content_sha256(command.objects),
    )
    if isinstance(state, Absent):
        return [registered]
    if not isinstance(state, Importing | ImportFailed) and state.registered == registered:
        return []
    raise Conflict(f"model {command.model_id} exists already; use a new id", code="model_exists")


def _complete_import(state: Declared, command: CompleteModelImport) -> list[Event]:
    requested = _IMPORTS.running(state, command.model_id, command.attempt).requested
    register = RegisterModel(
        model_id=command.model_id,
        name=requested.name,
        description=requested.description,
        owner_id=requested.owner_id,
        listing=command.listing,
        file_count=command.file_count,
        size_bytes=command.size_bytes,
    )
    return [*_register(Absent(), register), ModelUploaded(upload_id=command.upload_id)]


def _start_upload(state: Declared, command: StartModelUpload) -> list[Event]:
    match state:
        case Uploading(upload_id=command.upload_id):
            return []
        case Uploading():
            return [ModelUploadStarted(upload_id=command.upload_id)]
        case Deleted():
            raise _deleted(command.model_id)
        case Importing() | ImportFailed():
            raise being_imported(command.model_id, state)
        case Adapter():
            raise _never_uploaded(command.model_id)
        case _:
            raise Conflict(
                f"model {command.model_id} is {state.phase}: its files are complete and never change;"
                " register another model",
                code="already_uploaded",
            )


def _complete_upload(state: Declared, command: CompleteModelUpload) -> list[Event]:
    match state:
        case Uploading(upload_id=command.upload_id):
            return [ModelUploaded(upload_id=command.upload_id)]
        case Deleted():
            raise _deleted(command.model_id)
        case Importing() | ImportFailed():
            raise being_imported(command.model_id, state)
        case Adapter():
            raise _never_uploaded(command.model_id)
        case _ if state.upload_id == command.upload_id:
            return []
        case _:
            raise Conflict(
                f"upload {command.upload_id} is not the open session of model {command.model_id};"
                " start an upload and complete that one",
                code="upload_not_open",
            )


def _claim(state: Declared, command: ClaimModelValidation) -> list[Event]:
    match state:
        case Uploaded(tally=tally) if tally.next_attempt == command.attempt:
            return [ModelValidationStarted(agent_id=command.agent_id, attempt=command.attempt)]
        case Validating() if holds(state, command.agent_id, command.attempt):
            return []
        case _:
            raise offer_gone(command.model_id, command.attempt)


def _interrupt(state: Declared, command: InterruptModelValidation) -> list[Event]:
    if not isinstance(state, Validating) or not holds(state, command.agent_id, command.attempt):
        if command.agent_id is None:
            return []  # that lease is gone already
        raise attempt_not_held(command.model_id, command.agent_id, command.attempt)
    interrupted = ModelValidationInterrupted(
        attempt=command.attempt, reason=command.reason, detail=command.detail
    )
    tally = state.tally.interrupted(command.reason)
    if not tally.given_up():
        return [interrupted]
    problem = validation_failed(tally, command.detail)
    return [interrupted, ModelRejected(attempt=command.attempt, problems=(problem,))]


def _judge(state: Declared, command: JudgeModel) -> list[Event]:
    match state:
        case Validating() if holds(state, command.agent_id, command.attempt):
            return [_verdict(command)]
        case Ready(validated=verdict) | Rejected(rejected=verdict) if verdict == _verdict(command):
            return []
        case _:
            raise attempt_not_held(command.model_id, command.agent_id, command.attempt)


def _verdict(command: JudgeModel) -> ModelValidated | ModelRejected:
    if command.problems:
        return ModelRejected(attempt=command.attempt, problems=command.problems)
    if command.facts is None or command.content_sha256 is None:
        raise Invalid(
            f"the verdict on model {command.model_id} has neither problems nor both facts and"
            " content_sha256; report one of them",
            code="empty_verdict",
        )
    return ModelValidated(
        attempt=command.attempt,
        facts=command.facts,
        content_sha256=command.content_sha256,
    )


def _never_uploaded(model_id: str) -> Conflict:
    return Conflict(
        f"model {model_id} is an adapter that a job stored; register a base model to upload files",
        code="not_a_base_model",
    )


def _deleted(model_id: str) -> Conflict:
    return Conflict(f"model {model_id} was deleted; register it again", code="model_deleted")
