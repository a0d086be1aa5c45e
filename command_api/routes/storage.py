"""What the whole installation stores, and collecting what nobody needs: for the operator."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel

from command_api.auth.tokens import OPERATE
from command_api.routes.calling import ClosedRoute, needs
from command_api.routes.commanding import AskingOfRequest
from command_api.routes.problem_docs import COMMAND, QUERY, problems
from command_api.routes.reading import ReadingOfRequest
from command_api.storage.requests import Collection, find_collection, recent_collections, request_collection
from schemas.api import CollectBody

router = APIRouter(
    prefix="/storage", tags=["storage"], dependencies=[needs(OPERATE)], route_class=ClosedRoute
)

_SHOWN = 20

CollectionId = Annotated[int, Path(ge=1, le=2**63 - 1)]
"""As PostgreSQL counts them."""


class CollectionAccepted(Collection):
    """A collection that was asked for."""

    command_id: str


class CollectionList(BaseModel):
    """The last ones, newest first."""

    data: list[Collection]


@router.post(
    "/collections",
    operation_id="storage_collect",
    status_code=202,
    response_model=CollectionAccepted,
    responses=problems(*COMMAND),
    summary="Delete what nobody needs any more, or with dry_run only tell what it is",
)
async def collect(asking: AskingOfRequest, body: CollectBody | None = None) -> dict[str, Any]:
    asked = body or CollectBody()
    async with asking.parts.pool.connection() as connection:
        # Not an event: it changes no fact. An open request of the kind is joined, so repeats are harmless.
        identifier = await request_collection(
            connection, dry_run=asked.dry_run, requested_by=asking.caller.user_id
        )
        found = await find_collection(connection, identifier)
    asking.response.headers["Location"] = f"/api/v1/storage/collections/{identifier}"
    return {**dict(found), "command_id": asking.command_id}


@router.get(
    "/collections",
    operation_id="storage_collections_list",
    response_model=CollectionList,
    responses=problems(*QUERY),
    summary="The last collections and what they found",
)
async def list_collections(reading: ReadingOfRequest) -> CollectionList:
    async with reading.parts.pool.connection() as connection:
        return CollectionList(data=list(await recent_collections(connection, _SHOWN)))


@router.get(
    "/collections/{collection_id}",
    operation_id="storage_collections_get",
    response_model=Collection,
    responses=problems(*QUERY),
    summary="How far a collection is, and what it found",
)
async def get_collection(collection_id: CollectionId, reading: ReadingOfRequest) -> Collection:
    async with reading.parts.pool.connection() as connection:
        return await find_collection(connection, collection_id)
