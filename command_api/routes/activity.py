"""What happened lately, in sentences."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from command_api.routes.calling import ClosedRoute, needs
from command_api.routes.problem_docs import QUERY, problems
from command_api.routes.reading import (
    EVENT_TYPES,
    CursorParameter,
    Limit,
    MinPosition,
    Page,
    ReadingOfRequest,
    chosen,
)
from projections.sentences import Level
from projections.views.activity import Activity, recent
from schemas.ids import StreamId

router = APIRouter(
    prefix="/activity", tags=["activity"], dependencies=[needs("events:read")], route_class=ClosedRoute
)


@router.get(
    "",
    operation_id="activity_list",
    response_model=Page[Activity],
    responses=problems(*QUERY),
    summary="What happened lately, newest first",
)
async def list_activity(
    reading: ReadingOfRequest,
    limit: Limit = 50,
    cursor: CursorParameter = None,
    stream_id: StreamId | None = None,
    types: Annotated[str | None, Query(max_length=4000)] = None,
    min_level: Level = "detail",
    min_position: MinPosition = None,
) -> dict[str, Any]:
    wanted = chosen("types", types, EVENT_TYPES)
    await reading.fresh("activity", min_position)
    filters = [stream_id or "", types or "", min_level]
    place = reading.place(cursor, filters)
    async with reading.parts.pool.connection() as connection:
        found = await recent(
            connection,
            reading.organization_id,
            limit=limit + 1,
            before=int(place[0]) if place else None,
            stream_id=stream_id,
            types=wanted,
            min_level=min_level,
        )
    following = [found[limit - 1].position] if len(found) > limit else None
    return reading.answer(found[:limit], following, filters)
