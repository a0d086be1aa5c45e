"""Models: bases that people register and upload, adapters that jobs made; list, show, download, delete."""

from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Response

from command_api.domain.errors import Conflict, NotFound
from command_api.domain.imports import ImportFailed, Importing
from command_api.domain.model import Absent, Adapter, Deleted, Uploading
from command_api.routes import files, importing
from command_api.routes.calling import RATE_LIMIT, ClosedRoute, needs
from command_api.routes.commanding import AskingOfRequest
from command_api.routes.downloads import DownloadFile, downloadable
from command_api.routes.files import Declaration, ImportCommands, Kind
from command_api.routes.parts import Parts
from command_api.routes.problem_docs import COMMAND, QUERY, problems
from command_api.routes.reading import CursorParameter, Limit, MinPosition, Page, ReadingOfRequest, chosen
from command_api.routes.travelling import MomentOfRequest, then
from projections.views import models as view
from projections.views.models import Models, ModelView
from schemas.api import CompleteUploadBody, ImportBody, RegisterBody, Status, UploadSession
from schemas.commands import Command
from schemas.commands.model import (
    CompleteModelUpload,
    DeleteModel,
    RegisterModel,
    RequestModelImport,
    RetryModelImport,
    StartModelUpload,
)
from schemas.ids import ModelId, Prefix
from schemas.imports import ImportProgress
from schemas.objects import Listing, StoredObject, content_key

router = APIRouter(
    prefix="/models", tags=["models"], dependencies=[needs("models:read")], route_class=ClosedRoute
)


class ModelCommanded(ModelView):
    """A model after a command."""

    command_id: str


def _register(declaration: Declaration) -> Command:
    body = declaration.body
    return RegisterModel(
        model_id=declaration.item_id,
        name=body.name,
        description=body.description,
        owner_id=declaration.owner_id,
        listing=declaration.listing,
        file_count=len(body.files),
        size_bytes=sum(file.size_bytes for file in body.files),
    )


_MODELS = Kind(
    collection="models",
    prefix=Prefix.MODEL,
    view=Models(),
    uploading=Uploading,
    register=_register,
    start_upload=lambda item_id, upload_id: StartModelUpload(model_id=item_id, upload_id=upload_id),
    complete_upload=lambda item_id, upload_id: CompleteModelUpload(model_id=item_id, upload_id=upload_id),
    imports=ImportCommands("model_id", RequestModelImport, RetryModelImport),
)


@router.post(
    "",
    dependencies=[needs("models:write")],
    operation_id="models_register",
    status_code=201,
    response_model=ModelCommanded,
    responses=problems(*COMMAND),
    summary="Register a base model by its files' paths, sizes and hashes",
    openapi_extra={RATE_LIMIT: "uploads"},
)
async def register(body: RegisterBody, asking: AskingOfRequest) -> dict[str, Any]:
    item = await files.register(_MODELS, body, asking)
    return {**dict(item), "command_id": asking.command_id}


@router.post(
    "/import",
    dependencies=[needs("models:write")],
    operation_id="models_import",
    status_code=202,
    response_model=ModelCommanded,
    responses=problems(*COMMAND),
    openapi_extra={RATE_LIMIT: "uploads", "x-emits": ["kinora.model.import_requested"]},
    summary="Have a base model fetched from a URL, a bucket, a folder of the server or a hub",
)
async def import_(body: ImportBody, asking: AskingOfRequest) -> dict[str, Any]:
    item = await importing.request(_MODELS, body, asking)
    return {**dict(item), "command_id": asking.command_id}


@router.post(
    "/{model_id}/import/retry",
    dependencies=[needs("models:write")],
    operation_id="models_import_retry",
    status_code=202,
    response_model=ModelCommanded,
    responses=problems(*COMMAND),
    summary="Try a failed import again",
)
async def import_retry(model_id: ModelId, asking: AskingOfRequest) -> dict[str, Any]:
    item = await importing.retry(_MODELS, model_id, asking)
    return {**dict(item), "command_id": asking.command_id}


@router.get(
    "/{model_id}/import",
    operation_id="models_import_progress",
    response_model=ImportProgress,
    responses=problems(*QUERY, 409),
    summary="How far a running import is",
)
async def import_progress(model_id: ModelId, reading: ReadingOfRequest) -> ImportProgress:
    return await importing.follow(model_id, reading)


@router.get(
    "",
    operation_id="models_list",
    response_model=Page[ModelView],
    responses=problems(*QUERY),
    summary="List base models and adapters, newest first",
)
async def list_models(
    reading: ReadingOfRequest,
    limit: Limit = 50,
    cursor: CursorParameter = None,
    status: Annotated[
        str | None,
        Query(
            max_length=200, description=f"Only these, such as ready,rejected: {', '.join(get_args(Status))}."
        ),
    ] = None,
    min_position: MinPosition = None,
) -> Response:
    statuses = chosen("status", status, get_args(Status))
    await reading.fresh("models", min_position)

    async def rows(count: int, after: Any) -> Any:
        async with reading.parts.pool.connection() as connection:
            return await view.page(
                connection, reading.organization_id, limit=count, after=after, statuses=statuses
            )

    return await reading.stored_page(rows, limit=limit, cursor=cursor, filters=[status or ""])


@router.get(
    "/{model_id}",
    operation_id="models_get",
    response_model=ModelView,
    responses=problems(*QUERY),
    summary="Show a model with its validation report or its origin",
)
async def get(
    model_id: ModelId,
    reading: ReadingOfRequest,
    moment: MomentOfRequest,
    min_position: MinPosition = None,
) -> Any:
    if moment is not None:
        return await then(reading, _MODELS.view, model_id, moment, min_position)
    await reading.fresh("models", min_position)
    async with reading.parts.pool.connection() as connection:
        found = await view.get(connection, reading.organization_id, model_id)
    if found is None:
        raise NotFound(f"model {model_id} does not exist")
    return reading.tagged(found, found.version)


@router.delete(
    "/{model_id}",
    dependencies=[needs("models:write")],
    operation_id="models_delete",
    status_code=204,
    responses=problems(*COMMAND),
    summary="Delete a model; jobs that use it keep what they pinned",
)
async def delete(model_id: ModelId, asking: AskingOfRequest) -> Response:
    await asking.execute(DeleteModel(model_id=model_id))
    return asking.no_content()


@router.post(
    "/{model_id}/upload",
    dependencies=[needs("models:write")],
    operation_id="models_upload",
    response_model=UploadSession,
    responses=problems(*COMMAND),
    summary="Open or continue the upload session: URLs for files that the store lacks",
    openapi_extra={RATE_LIMIT: "uploads"},
)
async def upload(model_id: ModelId, asking: AskingOfRequest) -> UploadSession:
    return await files.open_session(_MODELS, model_id, asking)


@router.post(
    "/{model_id}/upload/complete",
    dependencies=[needs("models:write")],
    operation_id="models_upload_complete",
    status_code=202,
    response_model=ModelCommanded,
    responses=problems(*COMMAND),
    summary="Verify what was put; `uploading` in the answer means that files are still missing",
    openapi_extra={RATE_LIMIT: "uploads"},
)
async def upload_complete(
    model_id: ModelId, body: CompleteUploadBody, asking: AskingOfRequest
) -> dict[str, Any]:
    item = await files.complete(_MODELS, model_id, body, asking)
    return {**dict(item), "command_id": asking.command_id}


@router.get(
    "/{model_id}/download",
    operation_id="models_download",
    response_model=Page[DownloadFile],
    responses=problems(*QUERY, 409),
    summary="Presigned URLs of a model's files",
)
async def download(
    model_id: ModelId, reading: ReadingOfRequest, limit: Limit = 50, cursor: CursorParameter = None
) -> dict[str, Any]:
    parts = reading.parts
    await reading.from_log()
    loaded = await parts.bus.load(model_id)
    match loaded.state:
        case _ if loaded.organization_id != reading.organization_id:
            raise NotFound(f"model {model_id} does not exist")
        case Absent() | Deleted():
            raise NotFound(f"model {model_id} does not exist")
        case Uploading() | Importing() | ImportFailed():
            raise Conflict(f"the files of model {model_id} are not here yet", code="not_uploaded")
        case Adapter(registered=registered):
            objects = list(registered.objects)
        case state:
            objects = await _base_objects(parts, reading.organization_id, state.registered.listing.key)
    first = int((reading.place(cursor) or [0])[0])
    chosen = objects[first : first + limit]
    files = [await downloadable(parts, each) for each in chosen]
    more = first + limit < len(objects)
    return reading.answer(files, [first + limit] if more else None)


async def _base_objects(parts: Parts, organization_id: str, listing_key: str) -> list[StoredObject]:
    listing = Listing.model_validate_json(await parts.store.get_bytes(listing_key))
    return [
        StoredObject(
            path=file.path,
            key=content_key(organization_id, file.sha256),
            size_bytes=file.size_bytes,
            sha256=file.sha256,
        )
        for file in listing.files
    ]
