"""Turns events into the canonical bytes that the log keeps, and back, by the explicit type registry."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import rfc8785
from eventsourcing.persistence import JSONTranscoder, Mapper, StoredEvent

from command_api.eventlog.canonical import canonical_json
from command_api.eventlog.errors import EventNotCanonical, EventTooLarge
from schemas.envelope import Envelope, Metadata, envelope_fields
from schemas.events import Event
from schemas.ids import id_uuid

MAX_EVENT_BYTES = 256 * 1024


@dataclass(frozen=True)
class LoggedEvent:
    """An event with its place in its stream and its metadata: what the library calls a domain event."""

    stream_id: str
    version: int
    metadata: Metadata
    event: Event

    @property
    def originator_id(self) -> UUID:
        return id_uuid(self.stream_id)

    @property
    def originator_version(self) -> int:
        return self.version


@dataclass(frozen=True)
class StoredLoggedEvent(StoredEvent):
    """The library's row with what the columns beside `state` are made of."""

    stream_id: str
    metadata: Metadata


def canonical_state(logged: LoggedEvent) -> bytes:
    """The RFC 8785 form of the event's envelope.

    Raises:
        EventNotCanonical: when a value has no exact JSON form: NaN, infinity, a large integer, a lone
            surrogate, or a time that is not UTC.
        EventTooLarge: over 256 KiB.
    """
    event_type = type(logged.event).TYPE
    offset = logged.metadata.recorded_at.utcoffset()
    if offset != timedelta(0):
        raise EventNotCanonical(
            f"recorded_at of {event_type} is {logged.metadata.recorded_at.isoformat()}; give a time in UTC"
        )
    envelope = envelope_fields(logged.stream_id, logged.version, logged.metadata, logged.event)
    try:
        state = canonical_json(envelope)
    except rfc8785.CanonicalizationError as error:
        raise EventNotCanonical(
            f"{event_type} v{logged.version} of {logged.stream_id} cannot be written exactly: {error};"
            " send finite numbers, integers below 2**53 and valid Unicode"
        ) from error
    if len(state) > MAX_EVENT_BYTES:
        raise EventTooLarge(
            f"{event_type} v{logged.version} of {logged.stream_id} has {len(state)} bytes, more than"
            f" {MAX_EVENT_BYTES}; store the bulk as an object and name it by hash"
        )
    return state


class EnvelopeMapper(Mapper[UUID]):
    """The library's mapper with our envelope in place of pickled class paths.

    The type stands in the row by its dotted name, never as something to import, and decoding validates.
    """

    def __init__(self) -> None:
        super().__init__(transcoder=JSONTranscoder())

    def to_stored_event(self, domain_event: Any) -> StoredLoggedEvent:
        logged: LoggedEvent = domain_event
        return StoredLoggedEvent(
            originator_id=logged.originator_id,
            originator_version=logged.version,
            topic=type(logged.event).TYPE,
            state=canonical_state(logged),
            stream_id=logged.stream_id,
            metadata=logged.metadata,
        )

    def to_domain_event(self, stored_event: StoredEvent) -> LoggedEvent:
        envelope = Envelope.model_validate_json(stored_event.state)
        return LoggedEvent(
            stream_id=envelope.subject,
            version=envelope.streamversion,
            metadata=envelope.metadata,
            event=envelope.event(),
        )
