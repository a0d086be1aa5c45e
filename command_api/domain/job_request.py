"""Whether a training may be requested at all: the one decision that folds three aggregates."""

from typing import assert_never

from command_api.domain import dataset, job, model
from command_api.domain.errors import Conflict, Invalid, NotFound
from command_api.domain.imports import ImportFailed, Importing
from command_api.domain.job_phases import Absent
from schemas.commands.job import RequestJob
from schemas.events import Event
from schemas.events.job import JobRequested, PinnedInput


def decide_request(
    state: job.State, dataset_state: dataset.State, model_state: model.State, command: RequestJob
) -> list[Event]:
    """Pin dataset and base model by content as they are now, unless one of them cannot be trained on.

    The states must belong to the caller's organization. A repeat makes no event, also when the inputs were
    deleted since.
    """
    if not isinstance(state, Absent):
        if _as_asked(state.history.request, command):
            return []
        raise Conflict(f"job {command.job_id} exists already; use a new id", code="job_exists")
    return [pinned(dataset_state, model_state, command)]


def pinned(dataset_state: dataset.State, model_state: model.State, command: RequestJob) -> JobRequested:
    """What would be recorded of a new request.

    Raises:
        Refused: dataset or model cannot be trained on, or not with these hyperparameters.
    """
    ready_dataset = _ready_dataset(dataset_state, command.dataset_id)
    ready_model = _ready_model(model_state, command.model_id)
    _check_frames(ready_dataset, command)
    return JobRequested(
        name=command.name,
        owner_id=command.owner_id,
        dataset_id=command.dataset_id,
        model_id=command.model_id,
        dataset=PinnedInput(
            listing=ready_dataset.registered.listing,
            content_sha256=ready_dataset.validated.content_sha256,
        ),
        model=PinnedInput(
            listing=ready_model.registered.listing, content_sha256=ready_model.validated.content_sha256
        ),
        manifest=ready_dataset.validated.manifest,
        hyperparameters=command.hyperparameters,
        pool=command.pool,
        priority=command.priority,
        labels=command.labels,
        max_attempts=command.max_attempts,
        model_shape=ready_model.validated.facts.shape,
    )


def _ready_dataset(state: dataset.State, dataset_id: str) -> dataset.Ready:
    match state:
        case dataset.Ready():
            return state
        case dataset.Absent():
            raise NotFound(f"dataset {dataset_id} does not exist")
        case dataset.Deleted():
            raise Conflict(f"dataset {dataset_id} was deleted; choose another", code="dataset_deleted")
        case dataset.Rejected():
            raise Conflict(
                f"dataset {dataset_id} was rejected; see its problems and register corrected files",
                code="dataset_rejected",
            )
        case ImportFailed():
            raise Conflict(
                f"the import of dataset {dataset_id} failed; retry it, or choose another",
                code="dataset_not_ready",
            )
        case Importing() | dataset.Uploading() | dataset.Uploaded() | dataset.Validating():
            raise Conflict(
                f"dataset {dataset_id} is {state.phase}; wait until it is ready", code="dataset_not_ready"
            )
        case _:
            assert_never(state)


def _ready_model(state: model.State, model_id: str) -> model.Ready:
    match state:
        case model.Ready():
            return state
        case model.Absent():
            raise NotFound(f"model {model_id} does not exist")
        case model.Deleted():
            raise Conflict(f"model {model_id} was deleted; choose another", code="model_deleted")
        case model.Rejected():
            raise Conflict(
                f"model {model_id} was rejected; see its problems and register a supported one",
                code="model_rejected",
            )
        case model.Adapter():
            raise Conflict(f"model {model_id} is an adapter; choose a base model", code="not_a_base_model")
        case ImportFailed():
            raise Conflict(
                f"the import of model {model_id} failed; retry it, or choose another", code="model_not_ready"
            )
        case Importing() | model.Uploading() | model.Uploaded() | model.Validating():
            raise Conflict(
                f"model {model_id} is {state.phase}; wait until it is ready", code="model_not_ready"
            )
        case _:
            assert_never(state)


def _check_frames(ready: dataset.Ready, command: RequestJob) -> None:
    facts = ready.validated.facts
    smallest, named = facts.smallest_clip_frames, f" ({facts.smallest_clip})" if facts.smallest_clip else ""
    chosen = command.hyperparameters
    if chosen.frames_per_second is None:
        field, frames = "frames", chosen.frames
    else:  # how many frames a clip gives depends on its length, which the engine checks before the first step
        field, frames = "min_frames", chosen.min_frames or 1
    if facts.clips and frames > smallest:
        raise Invalid.field(
            f"/hyperparameters/{field}",
            "frames_exceed_clip",
            f"{field} is {frames}, but the shortest clip of dataset {command.dataset_id}{named} has"
            f" {smallest}; ask for {smallest} or fewer, or leave that clip out",
        )


def _as_asked(request: JobRequested, command: RequestJob) -> bool:
    asked = command.model_dump(exclude={"job_id"})
    return request.model_dump(include=set(asked)) == asked
