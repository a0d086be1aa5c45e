"""The organization's part of the log: pages over HTTP, the live feed over WebSocket."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, WebSocket
from pydantic import BaseModel

from command_api.auth.errors import AuthError
from command_api.domain.errors import NotFound
from command_api.feed import frames
from command_api.feed.connection import FeedConnection
from command_api.feed.slots import FeedsFull
from command_api.problems import BadPosition
from command_api.rates import TooManyRequests
from command_api.routes.calling import RATE_LIMIT, CallerOfRequest, ClosedRoute, needs
from command_api.routes.origins import is_welcome
from command_api.routes.parts import Parts
from command_api.routes.problem_docs import QUERY, problems
from command_api.routes.reading import EVENT_TYPES, CursorParameter, Limit, ReadingOfRequest, chosen
from schemas.ids import EventId, JobId, StreamId

router = APIRouter(prefix="/events", tags=["events"], route_class=ClosedRoute)


class EventPage(BaseModel):
    """Events in the order of the log; go on with `after` = the last position, or with the cursor."""

    data: list[dict[str, Any]]
    has_more: bool
    next_cursor: str | None
    head: int
    """Position of the newest event of the whole log."""
    log_id: str


@router.get(
    "",
    dependencies=[needs("events:read")],
    operation_id="events_list",
    response_model=EventPage,
    responses=problems(*QUERY, 409),
    summary="The organization's events behind a position; those of your own log-ins by your id as stream_id",
    openapi_extra={RATE_LIMIT: "event_replay"},
)
async def list_events(
    reading: ReadingOfRequest,
    caller: CallerOfRequest,
    after: Annotated[int, Query(ge=0, le=2**62, description="Begin behind this position.")] = 0,
    types: Annotated[
        str | None, Query(max_length=4000, description="Only these, such as kinora.job.succeeded.")
    ] = None,
    job_id: JobId | None = None,
    stream_id: StreamId | None = None,
    log_id: Annotated[
        str | None, Query(max_length=64, description="The log that `after` belongs to; 409 if it is another.")
    ] = None,
    limit: Limit = 50,
    cursor: CursorParameter = None,
) -> dict[str, Any]:
    filters = [types or "", job_id or "", stream_id or ""]
    wanted = chosen("types", types, EVENT_TYPES)
    reading.in_log(log_id)
    head = await reading.from_log()
    begin = reading.log_place(cursor, filters) or after
    if begin > head:
        raise BadPosition(f"position {begin} is beyond the log's end {head}")
    stream = job_id or stream_id
    rows = await reading.parts.reader.page(
        begin,
        limit + 1,
        types=wanted,
        # A person's own stream is of no organization, and nobody else's to read.
        organization_id=None if stream == caller.user_id else reading.organization_id,
        stream_id=stream,
    )
    page = reading.log_answer(rows, limit, filters)
    return {**page, "head": head, "log_id": reading.parts.log.log_id}


@router.get(
    "/{event_id}",
    dependencies=[needs("events:read")],
    operation_id="events_get",
    response_model=dict[str, Any],
    responses=problems(*QUERY),
    summary="One event by its id",
)
async def get(event_id: EventId, reading: ReadingOfRequest, caller: CallerOfRequest) -> dict[str, Any]:
    await reading.from_log()
    async with reading.parts.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT notification_id FROM kinora_events"
            " WHERE event_id = %s AND (organization_id = %s OR stream_id = %s)",
            (event_id, reading.organization_id, caller.user_id),
        )
        found = await cursor.fetchone()
    if found is None:
        raise NotFound(f"event {event_id} does not exist")
    (row,) = await reading.parts.reader.page(int(found[0]) - 1, 1)
    return row.public(reading.parts.log.log_id)


@router.websocket("/ws", name="events_feed")
async def feed(socket: WebSocket) -> None:
    """The live feed; see `command_api.feed.frames` for its frames."""
    parts: Parts = socket.app.state.parts
    offered = socket.headers.get("sec-websocket-protocol", "")
    protocols = [name.strip() for name in offered.split(",")]
    known = frames.SUBPROTOCOL in protocols
    # Accepted even when it is refused next: before that a browser would not learn the close code.
    await socket.accept(subprotocol=frames.SUBPROTOCOL if known else None)
    if not known:
        await socket.close(frames.BAD_FRAME, f"ask for the subprotocol {frames.SUBPROTOCOL}")
        return
    if not is_welcome(socket.headers.get("origin"), parts.origins):
        await socket.close(frames.FORBIDDEN, "this origin may not use the feed")
        return
    scheme, _, token = socket.headers.get("authorization", "").partition(" ")
    try:
        caller = parts.tokens.verify(token if scheme.lower() == "bearer" else None)
    except AuthError:
        await socket.close(frames.UNAUTHENTICATED, "send a valid access token as Authorization: Bearer …")
        return
    if frames.SCOPE not in caller.scopes:
        await socket.close(frames.FORBIDDEN, f"the token lacks the scope {frames.SCOPE}")
        return
    try:
        await parts.rates.take("event_replay", caller.user_id)
        with parts.feed_slots.hold(caller.user_id):
            await FeedConnection(socket, caller, parts.feed).serve()
    except (TooManyRequests, FeedsFull) as error:
        await socket.close(frames.TOO_MUCH, error.message)
