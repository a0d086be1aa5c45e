"""The read models themselves, for the operator: all organizations share them."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from command_api.auth.tokens import OPERATE
from command_api.routes.calling import ClosedRoute, needs
from command_api.routes.commanding import AskingOfRequest
from command_api.routes.problem_docs import COMMAND, QUERY, problems
from command_api.routes.reading import ReadingOfRequest
from projections.catalogue import statuses
from projections.errors import UnknownView
from projections.rebuild_requests import Rebuild, find_rebuild, recent_rebuilds, request_rebuild
from projections.registry import VIEWS

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


@router.post(
    "/{name}/rebuild",
    operation_id="projections_rebuild",
    status_code=202,
    response_model=RebuildAccepted,
    responses=problems(*COMMAND),
    summary="Fold a read model anew beside the old one, which serves until the swap",
)
async def rebuild(name: str, asking: AskingOfRequest) -> dict[str, Any]:
    known = sorted(view.name for view in VIEWS)
    if name not in known:
        raise UnknownView(f"there is no read model {name[:100]!r}; there are {', '.join(known)}")
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
