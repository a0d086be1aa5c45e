"""The canonical envelope: what the log stores, NATS carries and every client sees.

The stored bytes are the RFC 8785 form of the envelope without position and log id, which only the
log can give. `Recorded` is the same event read back, with its place.
"""

import json
from datetime import datetime
from typing import Any

from pydantic import Field

from schemas.base import Message
from schemas.events import REGISTRY, Event
from schemas.ids import EventId, StreamId


class Metadata(Message):
    """Who, when and why; never part of an event's payload."""

    event_id: EventId
    recorded_at: datetime
    """UTC, when the decision was taken."""
    organization_id: str | None = None
    """None only for events that belong to no organization, such as a user's registration."""
    workspace_id: str | None = None
    actor: str
    """``usr_…``, ``agt_…`` or ``system:<part>``."""
    correlation_id: str
    """The request or work that all events of one story share."""
    causation_id: str
    """The command or event that this event follows from."""
    traceparent: str | None = None
    """W3C trace context of the request."""


class Envelope(Message):
    """One event as it is stored: metadata and payload, with its place in its stream."""

    type: str
    """Dotted, such as ``kinora.job.requested``."""
    schema_version: int = Field(ge=1)
    stream_id: StreamId
    version: int = Field(ge=1)
    """Place in the stream, from 1."""
    metadata: Metadata
    payload: dict[str, Any]


class Recorded(Message):
    """An event of the log, decoded and upcast, with its position."""

    position: int = Field(ge=1)
    stream_id: StreamId
    version: int
    metadata: Metadata
    event: Event

    @classmethod
    def from_state(cls, position: int, state: bytes) -> "Recorded":
        """Decode the stored bytes of an event.

        Raises:
            UnknownEventType: when no version of the type is registered.
            pydantic.ValidationError: when the payload does not fit its type.
        """
        envelope = Envelope.model_validate_json(state)
        event = REGISTRY.decode(envelope.type, envelope.schema_version, envelope.payload)
        return cls(
            position=position,
            stream_id=envelope.stream_id,
            version=envelope.version,
            metadata=envelope.metadata,
            event=event,
        )


def public_event(position: int, log_id: str, state: bytes) -> dict[str, Any]:
    """The stored event as every client sees it: the envelope with ``position`` and ``log_id`` beside it."""
    return {"position": position, "log_id": log_id, **json.loads(state)}
