"""The organization's part of the log: pages, single events and what they follow from, and all at once."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from command_api.domain.errors import Invalid, NotFound
from command_api.feed.export import MEDIA_TYPE, Export
from command_api.feed.known import never
from command_api.problems import BadPosition
from command_api.routes.calling import RATE_LIMIT, CallerOfRequest, ClosedRoute, needs
from command_api.routes.problem_docs import QUERY, problems
from command_api.routes.reading import (
    EVENT_TYPES,
    CursorParameter,
    Limit,
    Page,
    PinnedParameter,
    ReadingOfRequest,
    chosen,
    in_order,
    pins_asked,
)
from projections import causality
from schemas.ids import EventId, JobId, StreamId

router = APIRouter(prefix="/events", tags=["events"], route_class=ClosedRoute)


LogIdParameter = Annotated[
    str | None, Query(max_length=64, description="The log that `after` belongs to; 409 if it is another.")
]


class EventPage(BaseModel):
    """Events in the order of the log; go on with `after` = the last position, or with the cursor."""

    data: list[dict[str, Any]]
    has_more: bool
    next_cursor: str | None
    head: int
    """Position of the newest event of the whole log."""
    log_id: str


class EventCauses(BaseModel):
    """The way back from an event."""

    data: list[dict[str, Any]]
    """The events that led to it, the nearest first."""
    began_with: str
    """The command (`cmd_…`), request or report that the first of them follows from."""
    correlation_id: str
    """What all events of the story share."""
    complete: bool
    """False when the chain goes on beyond what is shown: ask for the causes of the last event."""


class EventEffects(Page[dict[str, Any]]):
    """Everything that came of an event, in the order of the log; `causationid` says what of what."""

    complete: bool
    """False when there are more than are looked for: ask for the effects of those shown."""


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
    log_id: LogIdParameter = None,
    pinned: PinnedParameter = None,
    limit: Limit = 50,
    cursor: CursorParameter = None,
) -> dict[str, Any]:
    filters = [types or "", job_id or "", stream_id or ""]
    wanted = chosen("types", types, EVENT_TYPES)
    if (why := never(wanted or (), job_id or stream_id, caller.user_id)) is not None:
        raise Invalid.field("/query/types", "bad_filter", why)
    pins = pins_asked(pinned)
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
    page = reading.log_answer([row.as_pinned(pins) for row in rows], limit, filters)
    return {**page, "head": head, "log_id": reading.parts.log.log_id}


@router.get(
    "/export",
    dependencies=[needs("events:read")],
    operation_id="events_export",
    response_class=StreamingResponse,
    responses={
        **problems(*QUERY, 409),
        200: {"content": {MEDIA_TYPE: {}}, "description": "A line per event."},
    },
    summary="All of the organization's events between two positions, one a line",
    openapi_extra={RATE_LIMIT: "event_export"},
)
async def export_events(
    reading: ReadingOfRequest,
    after: Annotated[int, Query(ge=0, le=2**62, description="Begin behind this position.")] = 0,
    until: Annotated[
        int | None, Query(ge=0, le=2**62, description="End with this position; by default the newest.")
    ] = None,
    log_id: LogIdParameter = None,
) -> StreamingResponse:
    reading.in_log(log_id)
    head = await reading.from_log()
    for position in (after, until or 0):
        if position > head:
            raise BadPosition(f"position {position} is beyond the log's end {head}")
    in_order(after, until)
    parts = reading.parts
    export = Export(
        reader=parts.reader,
        log_id=parts.log.log_id,
        organization_id=reading.organization_id,
        after=after,
        until=head if until is None else until,
    )
    headers = dict(reading.response.headers) | await export.headers()
    return StreamingResponse(export.lines(), media_type=MEDIA_TYPE, headers=headers)


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
        raise _unknown(event_id)
    (row,) = await reading.parts.reader.page(int(found[0]) - 1, 1)
    return row.public(reading.parts.log.log_id)


@router.get(
    "/{event_id}/causes",
    dependencies=[needs("events:read")],
    operation_id="events_causes",
    response_model=EventCauses,
    responses=problems(*QUERY),
    summary="What led to an event, back to the command or report that began it",
)
async def list_causes(
    event_id: EventId, reading: ReadingOfRequest, caller: CallerOfRequest
) -> dict[str, Any]:
    await reading.from_log()
    async with reading.parts.pool.connection() as connection:
        found = await causality.causes(
            connection, event_id, organization_id=reading.organization_id, user_id=caller.user_id
        )
    if found is None:
        raise _unknown(event_id)
    rows = await reading.parts.reader.events(found.positions)
    return {
        "data": [row.public(reading.parts.log.log_id) for row in reversed(rows)],
        "began_with": found.began_with,
        "correlation_id": found.correlation_id,
        "complete": found.complete,
    }


@router.get(
    "/{event_id}/effects",
    dependencies=[needs("events:read")],
    operation_id="events_effects",
    response_model=EventEffects,
    responses=problems(*QUERY, 409),
    summary="What came of an event, and of that, and so on",
)
async def list_effects(
    event_id: EventId,
    reading: ReadingOfRequest,
    caller: CallerOfRequest,
    limit: Limit = 50,
    cursor: CursorParameter = None,
) -> dict[str, Any]:
    await reading.from_log()
    after = reading.log_place(cursor) or 0
    async with reading.parts.pool.connection() as connection:
        found = await causality.effects(
            connection, event_id, organization_id=reading.organization_id, user_id=caller.user_id
        )
    if found is None:
        raise _unknown(event_id)
    positions = [position for position in found.positions if position > after]
    rows = await reading.parts.reader.events(positions[: limit + 1])
    return {**reading.log_answer(rows, limit), "complete": found.complete}


def _unknown(event_id: str) -> NotFound:
    return NotFound(f"event {event_id} does not exist")
