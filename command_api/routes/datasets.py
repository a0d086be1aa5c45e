"""Datasets: register, upload, list, show, delete."""

from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Response

from command_api.domain.dataset import Uploading
from command_api.domain.errors import NotFound
from command_api.routes import files, importing
from command_api.routes.calling import RATE_LIMIT, ClosedRoute, needs
from command_api.routes.commanding import AskingOfRequest
from command_api.routes.files import Declaration, ImportCommands, Kind
from command_api.routes.problem_docs import COMMAND, QUERY, problems
from command_api.routes.reading import CursorParameter, Limit, MinPosition, Page, ReadingOfRequest, chosen
from command_api.routes.travelling import MomentOfRequest, then
from projections.views import datasets as view
from projections.views.datasets import Datasets, DatasetView
from schemas.api import CompleteUploadBody, ImportBody, RegisterBody, Status, UploadSession
from schemas.commands import Command
from schemas.commands.dataset import (
    CompleteDatasetUpload,
    DeleteDataset,
    RegisterDataset,
    RequestDatasetImport,
    RetryDatasetImport,
    StartDatasetUpload,
)
from schemas.ids import DatasetId, Prefix
from schemas.imports import ImportProgress

router = APIRouter(
    prefix="/datasets", tags=["datasets"], dependencies=[needs("datasets:read")], route_class=ClosedRoute
)


class DatasetCommanded(DatasetView):
    """A dataset after a command."""

    command_id: str


def _register(declaration: Declaration) -> Command:
    body = declaration.body
    return RegisterDataset(
        dataset_id=declaration.item_id,
        name=body.name,
        description=body.description,
        owner_id=declaration.owner_id,
        listing=declaration.listing,
        file_count=len(body.files),
        size_bytes=sum(file.size_bytes for file in body.files),
    )


_DATASETS = Kind(
    collection="datasets",
    prefix=Prefix.DATASET,
    view=Datasets(),
    uploading=Uploading,
    register=_register,
    start_upload=lambda item_id, upload_id: StartDatasetUpload(dataset_id=item_id, upload_id=upload_id),
    complete_upload=lambda item_id, upload_id: CompleteDatasetUpload(dataset_id=item_id, upload_id=upload_id),
    imports=ImportCommands("dataset_id", RequestDatasetImport, RetryDatasetImport),
)


@router.post(
    "",
    dependencies=[needs("datasets:write")],
    operation_id="datasets_register",
    status_code=201,
    response_model=DatasetCommanded,
    responses=problems(*COMMAND),
    summary="Register a dataset by its files' paths, sizes and hashes",
    openapi_extra={RATE_LIMIT: "uploads"},
)
async def register(body: RegisterBody, asking: AskingOfRequest) -> dict[str, Any]:
    item = await files.register(_DATASETS, body, asking)
    return {**dict(item), "command_id": asking.command_id}


@router.post(
    "/import",
    dependencies=[needs("datasets:write")],
    operation_id="datasets_import",
    status_code=202,
    response_model=DatasetCommanded,
    responses=problems(*COMMAND),
    openapi_extra={RATE_LIMIT: "uploads", "x-emits": ["kinora.dataset.import_requested"]},
    summary="Have a dataset fetched from a URL, a bucket, a folder of the server or a hub",
)
async def import_(body: ImportBody, asking: AskingOfRequest) -> dict[str, Any]:
    item = await importing.request(_DATASETS, body, asking)
    return {**dict(item), "command_id": asking.command_id}


@router.post(
    "/{dataset_id}/import/retry",
    dependencies=[needs("datasets:write")],
    operation_id="datasets_import_retry",
    status_code=202,
    response_model=DatasetCommanded,
    responses=problems(*COMMAND),
    summary="Try a failed import again",
)
async def import_retry(dataset_id: DatasetId, asking: AskingOfRequest) -> dict[str, Any]:
    item = await importing.retry(_DATASETS, dataset_id, asking)
    return {**dict(item), "command_id": asking.command_id}


@router.get(
    "/{dataset_id}/import",
    operation_id="datasets_import_progress",
    response_model=ImportProgress,
    responses=problems(*QUERY, 409),
    summary="How far a running import is",
)
async def import_progress(dataset_id: DatasetId, reading: ReadingOfRequest) -> ImportProgress:
    return await importing.follow(dataset_id, reading)


@router.get(
    "",
    operation_id="datasets_list",
    response_model=Page[DatasetView],
    responses=problems(*QUERY),
    summary="List datasets, newest first",
)
async def list_datasets(
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
    await reading.fresh("datasets", min_position)

    async def rows(count: int, after: Any) -> Any:
        async with reading.parts.pool.connection() as connection:
            return await view.page(
                connection, reading.organization_id, limit=count, after=after, statuses=statuses
            )

    return await reading.stored_page(rows, limit=limit, cursor=cursor, filters=[status or ""])


@router.get(
    "/{dataset_id}",
    operation_id="datasets_get",
    response_model=DatasetView,
    responses=problems(*QUERY),
    summary="Show a dataset with its validation report",
)
async def get(
    dataset_id: DatasetId,
    reading: ReadingOfRequest,
    moment: MomentOfRequest,
    min_position: MinPosition = None,
) -> Any:
    if moment is not None:
        return await then(reading, _DATASETS.view, dataset_id, moment, min_position)
    await reading.fresh("datasets", min_position)
    async with reading.parts.pool.connection() as connection:
        found = await view.get(connection, reading.organization_id, dataset_id)
    if found is None:
        raise NotFound(f"dataset {dataset_id} does not exist")
    return reading.tagged(found, found.version)


@router.delete(
    "/{dataset_id}",
    dependencies=[needs("datasets:write")],
    operation_id="datasets_delete",
    status_code=204,
    responses=problems(*COMMAND),
    summary="Delete a dataset; jobs that use it keep what they pinned",
)
async def delete(dataset_id: DatasetId, asking: AskingOfRequest) -> Response:
    await asking.execute(DeleteDataset(dataset_id=dataset_id))
    return asking.no_content()


@router.post(
    "/{dataset_id}/upload",
    dependencies=[needs("datasets:write")],
    operation_id="datasets_upload",
    response_model=UploadSession,
    responses=problems(*COMMAND),
    summary="Open or continue the upload session: URLs for files that the store lacks",
    openapi_extra={RATE_LIMIT: "uploads"},
)
async def upload(dataset_id: DatasetId, asking: AskingOfRequest) -> UploadSession:
    return await files.open_session(_DATASETS, dataset_id, asking)


@router.post(
    "/{dataset_id}/upload/complete",
    dependencies=[needs("datasets:write")],
    operation_id="datasets_upload_complete",
    status_code=202,
    response_model=DatasetCommanded,
    responses=problems(*COMMAND),
    summary="Verify what was put; `uploading` in the answer means that files are still missing",
    openapi_extra={RATE_LIMIT: "uploads"},
)
async def upload_complete(
    dataset_id: DatasetId, body: CompleteUploadBody, asking: AskingOfRequest
) -> dict[str, Any]:
    item = await files.complete(_DATASETS, dataset_id, body, asking)
    return {**dict(item), "command_id": asking.command_id}
