"""The read models themselves, for the operator: all organizations share them."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from command_api.auth.tokens import OPERATE
from command_api.routes.calling import ClosedRoute, needs
from command_api.routes.commanding import AskingOfRequest
from command_api.routes.problem_docs import COMMAND, QUERY, problems
from command_api.routes.reading import CursorParameter, Limit, Page, ReadingOfRequest
from projections.catalogue import statuses
from projections.errors import UnknownView
from projections.parking import ParkedStream, parked_streams
from projections.rebuild_requests import Checked, Rebuild, find_rebuild, recent_rebuilds, request_rebuild
from projections.registry import view_named
from projections.replay import replay_parked
from schemas.api import ReplayParkedBody

router = APIRouter(
    prefix="/projections", tags=["projections"], dependencies=[needs(OPERATE)], route_class=ClosedRoute
)


class RebuildShown(BaseModel):
    """A rebuild, running or the last one."""

    id: int
    status: str
    position: int
    target: int
    progress: float
    checked: Checked | None
    """What was compared before the swap."""
    error: str | None
    requested_at: datetime
    finished_at: datetime | None


class ProjectionShown(BaseModel):
    """One read model."""

    name: str
    version: int
    position: int
    lag: int
    """Events of the log that it has not read."""
    parked: int
    """Streams set aside because one of their events could not be folded."""
    updated_at: datetime
    rebuild: RebuildShown | None


class ProjectionList(BaseModel):
    """Every read model."""

    data: list[ProjectionShown]
    head: int


REPLAY_SECONDS = 5.0
"""A request begins no further stream after so long: repeat it while some remain."""


class ReplayDone(BaseModel):
    """What a replay achieved."""

    name: str
    command_id: str
    replayed: list[str]
    """Streams that the read model follows again."""
    still_parked: list[ParkedStream]
    """Streams that failed again, with the event that failed now."""
    events: int
    """Events that were folded."""
    remaining: int
    """Streams that were not tried yet: repeat the request for them."""


class RebuildAccepted(RebuildShown):
    """A rebuild that was asked for."""

    name: str
    command_id: str


def _shown(rebuild: Rebuild) -> dict[str, Any]:
    return {
        "id": rebuild.id,
        "status": rebuild.state,
        "position": rebuild.position,
        "target": rebuild.target,
        "progress": rebuild.progress,
        "checked": rebuild.checked,
        "error": rebuild.error,
        "requested_at": rebuild.requested_at,
        "finished_at": rebuild.finished_at,
    }


@router.get(
    "",
    operation_id="projections_list",
    response_model=ProjectionList,
    responses=problems(*QUERY),
    summary="The read models and how far each has read",
)
async def list_projections(reading: ReadingOfRequest) -> dict[str, Any]:
    head = await reading.from_log()
    async with reading.parts.pool.connection() as connection:
        views = await statuses(connection)
        newest = {rebuild.view: rebuild for rebuild in reversed(await recent_rebuilds(connection, 200))}
    data = [
        {
            "name": each.view,
            "version": each.version,
            "position": each.position,
            "lag": max(0, head - each.position),
            "parked": each.parked_streams,
            "updated_at": each.updated_at,
            "rebuild": _shown(newest[each.view]) if each.view in newest else None,
        }
        for each in views
    ]
    return {"data": data, "head": head}


@router.get(
    "/parked",
    operation_id="projections_parked",
    response_model=Page[ParkedStream],
    responses=problems(*QUERY),
    summary="Streams that read models leave alone since one of their events could not be folded",
)
async def parked(
    reading: ReadingOfRequest,
    view: Annotated[str | None, Query(max_length=100, description="Only this read model's.")] = None,
    limit: Limit = 50,
    cursor: CursorParameter = None,
) -> dict[str, Any]:
    if view is not None:
        view_named(view)
    await reading.from_log()
    filters = [view or ""]
    position, name = reading.place(cursor, filters) or (0, "")
    async with reading.parts.pool.connection() as connection:
        found = await parked_streams(connection, view, after=(int(position), name), limit=limit + 1)
    last = found[limit - 1] if len(found) > limit else None
    place = None if last is None else [last.first_position, last.view]
    return reading.answer(found[:limit], place, filters)


@router.post(
    "/{name}/replay",
    operation_id="projections_replay",
    response_model=ReplayDone,
    responses=problems(*COMMAND),
    summary="Fold what waits in parked streams, now that what broke them is put right",
)
async def replay(name: str, asking: AskingOfRequest, body: ReplayParkedBody | None = None) -> dict[str, Any]:
    view, stream_id = view_named(name), None if body is None else body.stream_id
    conninfo = asking.parts.settings.postgres.conninfo()
    done = await replay_parked(conninfo, view, stream_id, seconds=REPLAY_SECONDS)
    async with asking.parts.pool.connection() as connection:
        stuck = [
            each for each in await parked_streams(connection, name) if each.stream_id in done.still_parked
        ]
    asking.response.headers["X-Event-Position"] = str(await asking.parts.reader.head())
    return {
        "name": name,
        "command_id": asking.command_id,
        "replayed": done.streams,
        "still_parked": stuck,
        "events": done.events,
        "remaining": done.remaining,
    }


@router.post(
    "/{name}/rebuild",
    operation_id="projections_rebuild",
    status_code=202,
    response_model=RebuildAccepted,
    responses=problems(*COMMAND),
    summary="Fold a read model anew beside the old one, which serves until the swap",
)
async def rebuild(name: str, asking: AskingOfRequest) -> dict[str, Any]:
    view_named(name)
    async with asking.parts.pool.connection() as connection:
        # Not an event: it changes no fact. An open request for the view is joined, so repeats are harmless.
        identifier = await request_rebuild(
            connection, name, reason="asked for", requested_by=asking.caller.user_id
        )
        if identifier is None:
            raise UnknownView(f"the rebuild of {name} was not accepted; try again")
        found = await find_rebuild(connection, identifier)
    asking.response.headers["X-Event-Position"] = str(await asking.parts.reader.head())
    return {**_shown(found), "name": name, "command_id": asking.command_id}
