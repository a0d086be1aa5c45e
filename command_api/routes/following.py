"""Following the organization's events: over WebSocket, as server-sent events, and tickets for browsers."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response, WebSocket
from pydantic import AwareDatetime, BaseModel, Field

from command_api.auth.errors import AuthError
from command_api.auth.tokens import Principal
from command_api.domain.errors import Forbidden, Invalid, NotFound
from command_api.feed import frames
from command_api.feed.connection import FeedConnection
from command_api.feed.event_stream import RESET_ID, EventStream
from command_api.feed.opening import Fault, Foreign, open_subscription
from command_api.feed.slots import FeedsFull
from command_api.problems import BadPosition
from command_api.rates import TooManyRequests
from command_api.routes.calling import RATE_LIMIT, CallerOfRequest, ClosedRoute, TicketRoute, needs
from command_api.routes.commanding import IdempotencyKey
from command_api.routes.origins import is_welcome
from command_api.routes.parts import Parts, PartsOfRequest
from command_api.routes.problem_docs import QUERY, problems
from command_api.routes.reading import EVENT_TYPES, PinnedParameter, chosen, listed
from projections.sentences import Level
from schemas.errors import KinoraError
from schemas.ids import JobId, StreamId, WorkspaceId

router = APIRouter(prefix="/events", tags=["events"], route_class=ClosedRoute)
ticketed = APIRouter(prefix="/events", tags=["events"], route_class=TicketRoute)


class TicketIssued(BaseModel):
    """For one feed: `/events/ws?ticket=…` or `/events/stream?ticket=…`."""

    ticket: str
    expires_at: datetime


@router.post(
    "/tickets",
    dependencies=[needs(frames.SCOPE)],
    operation_id="events_ticket",
    status_code=201,
    response_model=TicketIssued,
    responses=problems(*QUERY),
    summary="A ticket that opens one feed within 30 seconds, for browsers: they cannot send a header with it",
    openapi_extra={RATE_LIMIT: "event_replay"},
)
async def issue_ticket(
    caller: CallerOfRequest, parts: PartsOfRequest, idempotency_key: IdempotencyKey = None
) -> TicketIssued:
    """A key changes nothing: a repeat gets a ticket of its own."""
    ticket = await parts.tickets.issue(caller)
    return TicketIssued(ticket=ticket.text, expires_at=ticket.expires_at)


@ticketed.get(
    "/stream",
    dependencies=[needs(frames.SCOPE)],
    operation_id="events_stream",
    response_class=Response,
    responses={
        **problems(*QUERY),
        200: {"content": {EventStream.media_type: {}}, "description": "Events; each `id` is a position."},
        204: {"description": "The stream ended with `reset`, so its position means nothing: begin anew."},
    },
    summary="The live feed as server-sent events",
    openapi_extra={RATE_LIMIT: "event_replay"},
)
async def stream(
    request: Request,
    response: Response,
    caller: CallerOfRequest,
    parts: PartsOfRequest,
    begin: Annotated[
        Literal["earliest", "latest"], Query(alias="from", description="Where neither of these says so.")
    ] = "latest",
    after: Annotated[int | None, Query(ge=0, le=2**62, description="Begin behind this position.")] = None,
    since: Annotated[AwareDatetime | None, Query(description="Begin with what was recorded then.")] = None,
    last_event_id: Annotated[
        Annotated[int, Field(ge=0, le=2**62)] | Literal["reset"] | None,
        Header(description="Goes before all others: where a stream broke off. None follows behind `reset`."),
    ] = None,
    log_id: Annotated[
        str | None, Query(max_length=64, description="The log of the positions; `reset` if it is another.")
    ] = None,
    types: Annotated[
        str | None, Query(max_length=4000, description="Only these, such as kinora.job.succeeded.")
    ] = None,
    job_id: JobId | None = None,
    stream_id: StreamId | None = None,
    workspace_id: WorkspaceId | None = None,
    min_level: Level | None = None,
    mode: frames.Mode = "lossless",
    pinned: PinnedParameter = None,
    ticket: Annotated[str | None, Query(max_length=128, description="Instead of a header.")] = None,
) -> Response:
    if not is_welcome(request.headers.get("origin"), parts.origins):
        raise Forbidden("this origin may not use the feed; add it to allowed_origins in the settings")
    if after is not None and since is not None:
        raise Invalid.field("/query/since", "not_exactly_one", "give either after or since, and not both")
    if last_event_id == RESET_ID:
        return Response(status_code=204, headers=response.headers)  # at which `EventSource` stops
    position = after if last_event_id is None else last_event_id
    named = chosen("types", types, EVENT_TYPES)
    start: frames.From | Literal["earliest", "latest"] = begin
    if position is not None:
        start = frames.From(position=position)
    elif since is not None:
        start = frames.From(time=since)
    asked = frames.Subscribe.model_validate(
        {
            "type": "subscribe",
            "sub": "events",
            "filter": frames.EventFilter(
                types=None if named is None else tuple(named),
                job_id=job_id,
                stream_id=stream_id,
                workspace_id=workspace_id,
                min_level=min_level,
            ),
            "from": start,
            "mode": mode,
            "log_id": log_id,
            "pinned": listed(pinned),
        }
    )
    opened = await open_subscription(parts.feed, caller, asked)
    match opened:
        case Foreign(reason):
            source: Any = frames.reset("events", parts.feed.log_id, reason)
        case Fault(code="bad_position") if last_event_id is not None:
            # Nobody gave out such a position here: it is another log's.
            source = frames.reset("events", parts.feed.log_id, "log_changed")
        case Fault():
            raise _refusal(opened)
        case subscription:
            source = subscription
    return EventStream(parts.feed, caller, source, parts.feed_slots, response.headers)


def _refusal(fault: Fault) -> KinoraError:
    match fault.code:
        case "bad_position":
            return BadPosition(fault.message)
        case "not_found":
            return NotFound(fault.message)
        case code:
            return Invalid.field("/query", code, fault.message)


@router.websocket("/ws", name="events_feed")
async def feed(socket: WebSocket) -> None:
    """The live feed; see `command_api.feed.frames` for its frames."""
    parts: Parts = socket.app.state.parts
    ticket = socket.query_params.get("ticket")
    socket.scope["query_string"] = b""  # the server logs the address of what it accepts
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
    try:
        caller = await _caller(socket, parts, ticket)
    except AuthError as error:
        reason = "send a valid access token as Authorization: Bearer …, or a fresh ticket"
        await socket.close(frames.UNAUTHENTICATED, error.message if ticket else reason)
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


async def _caller(socket: WebSocket, parts: Parts, ticket: str | None) -> Principal:
    scheme, _, token = socket.headers.get("authorization", "").partition(" ")
    if ticket is not None and not token:
        return await parts.tickets.redeem(ticket)
    return parts.tokens.verify(token if scheme.lower() == "bearer" else None)
