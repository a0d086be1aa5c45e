"""Runs one request's handlers and turns the events they want into what the log stores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from command_api.eventlog.errors import VersionConflict
from command_api.eventlog.log import Append
from command_api.eventlog.mapper import LoggedEvent
from command_api.eventlog.recorder import CommandRow, SideRow
from command_api.handlers.base import Context, Handler, Loaded
from command_api.handlers.streams import PendingStreams, Place, VisibleStreams
from schemas.commands import Command
from schemas.envelope import Metadata
from schemas.ids import Prefix, derived_id, id_prefix, new_id

Clock = Callable[[], datetime]
Handlers = Mapping[type[Command], Handler]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Request:
    """A command, who asks for it, and the rows that stand or fall with it."""

    command: Command
    context: Context
    rows: tuple[SideRow, ...] = ()


def decide(request: Request, handlers: Handlers, pending: PendingStreams, clock: Clock) -> Append:
    """Decide the request's command on top of `pending`, which afterwards includes it.

    Raises:
        Refused: when a handler refuses.
        MustWait: when a stream is being written by an earlier request of the transaction.
        VersionConflict: when a handler decided on another version than the present one.
    """
    context = request.context
    visible = VisibleStreams(pending, context)
    recorded_at = clock().astimezone(UTC)
    events: list[LoggedEvent] = []
    touched: str | None = None
    for change in _handler(handlers, request.command)(request.command, context, visible):
        touched = touched or change.stream_id
        if not change.events:
            continue
        loaded = visible.load(change.stream_id)
        if change.expected_version != loaded.version:
            raise VersionConflict(
                f"{change.stream_id} is at version {loaded.version}, not {change.expected_version};"
                " load it and decide again"
            )
        place = _place(change.stream_id, loaded, context, events)
        for version, event in enumerate(change.events, start=loaded.version + 1):
            event_id = _event_id(context, change.stream_id, len(events))
            metadata = _metadata(context, event_id, recorded_at, place)
            events.append(LoggedEvent(change.stream_id, version, metadata, event))
        pending.write(change.stream_id, change.events, place)
    return Append(tuple(events), _command_row(context, touched), request.rows)


def _handler(handlers: Handlers, command: Command) -> Handler:
    try:
        return handlers[type(command)]
    except KeyError:
        raise LookupError(f"no handler is registered for {type(command).__name__}") from None


def _place(stream_id: str, loaded: Loaded, context: Context, events: Sequence[LoggedEvent]) -> Place:
    """Where a stream's events belong: where its first one does, whoever the context is."""
    if loaded.version:
        return loaded.organization_id, loaded.workspace_id
    match id_prefix(stream_id):
        case Prefix.USER:
            return None, None
        case Prefix.ORGANIZATION:
            return stream_id, None
        case Prefix.FINDING:
            return context.organization_id, None  # some concern no organization alone
        case _ if context.organization_id is not None:
            return context.organization_id, context.workspace_id
    # A part of the control plane need not know: a stream that it begins belongs beside those it goes on with.
    for logged in events:
        if logged.metadata.organization_id is not None:
            return logged.metadata.organization_id, logged.metadata.workspace_id
    raise ValueError(f"{stream_id} would begin in no organization; give the context one")


def _event_id(context: Context, stream_id: str, index: int) -> str:
    """Random, or derived from the key of a system context, so that a repeated policy cannot add an event."""
    if context.is_system and context.idempotency is not None:
        return derived_id(Prefix.EVENT, stream_id, f"{context.actor}\n{context.idempotency.key}\n{index}")
    return new_id(Prefix.EVENT)


def _metadata(context: Context, event_id: str, recorded_at: datetime, place: Place) -> Metadata:
    return Metadata(
        event_id=event_id,
        recorded_at=recorded_at,
        organization_id=place[0],
        workspace_id=place[1],
        actor=context.actor,
        correlation_id=context.correlation_id,
        causation_id=context.causation_id,
        traceparent=context.traceparent,
    )


def _command_row(context: Context, stream_id: str | None) -> CommandRow | None:
    one = context.idempotency
    return None if one is None else CommandRow(one.principal, one.key, one.request_hmac, stream_id)
