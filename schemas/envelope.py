"""The canonical envelope: what the log stores, NATS carries and every client sees is one CloudEvent.

The stored bytes are the RFC 8785 form of a CloudEvents 1.0 object in structured mode, without `position` and
`source`, which only the log can give. Every door puts those two in front of the stored bytes and changes
nothing else, so whoever receives an event holds exactly what the log holds. `Recorded` is the same event read
back, with its place.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, create_model
from pydantic_core import CoreConfig, SchemaValidator

from schemas.base import Message, trusted
from schemas.events import REGISTRY, Event
from schemas.ids import EventId, StreamId

CONTENT_TYPE = "application/cloudevents+json"
"""Of one event in structured mode."""
SPEC_VERSION = "1.0"
_SOURCE = "urn:kinora:"
_PUBLIC = re.compile(rb'\{"position":([1-9]\d*),"source":"urn:kinora:(log_[0-9a-z_]+)",(.*\})', re.DOTALL)


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


_METADATA = frozenset(Metadata.model_fields)


class Envelope(Message):
    """One event as it is stored: the attributes of CloudEvents 1.0, our extensions, the payload as `data`.

    Attributes without a value are absent, as CloudEvents wants it.
    """

    specversion: Literal["1.0"]
    id: EventId
    type: str = Field(pattern=r"^kinora(\.[a-z0-9_]+)+\.v[1-9]\d*$")
    """Name and version of the schema of `data`, such as ``kinora.job.requested.v1``."""
    subject: StreamId
    """The stream: the aggregate that the event is about."""
    time: datetime
    datacontenttype: Literal["application/json"]
    streamversion: int = Field(ge=1)
    """Place in the stream, from 1."""
    organization: str | None = None
    workspace: str | None = None
    actor: str
    correlationid: str
    causationid: str
    traceparent: str | None = None
    """The distributed tracing extension of CloudEvents."""
    data: dict[str, Any]

    @property
    def metadata(self) -> Metadata:
        values = {
            "event_id": self.id,
            "recorded_at": self.time,
            "organization_id": self.organization,
            "workspace_id": self.workspace,
            "actor": self.actor,
            "correlation_id": self.correlationid,
            "causation_id": self.causationid,
            "traceparent": self.traceparent,
        }
        return trusted(Metadata, values, _METADATA)

    def event(self) -> Event:
        """What `data` means today.

        Raises:
            UnknownEventType: when no version of the type is registered.
            pydantic.ValidationError: when the payload does not fit its type.
        """
        return REGISTRY.decode(*split_type(self.type), self.data)


_OPTIONAL = tuple(name for name, field in Envelope.model_fields.items() if not field.is_required())


def versioned_type(event: type[Event]) -> str:
    """The `type` attribute of an event of this class."""
    return f"{event.TYPE}.v{event.VERSION}"


def split_type(versioned: str) -> tuple[str, int]:
    """``kinora.job.requested.v1`` → ``("kinora.job.requested", 1)``.

    Raises:
        ValueError: when there is no version at the end.
    """
    name, _, version = versioned.rpartition(".v")
    return name, int(version)


def envelope_fields(stream_id: str, version: int, metadata: Metadata, event: Event) -> dict[str, Any]:
    """The envelope as JSON values; a value without an exact JSON form is left for the writer to refuse."""
    fields = {
        "specversion": SPEC_VERSION,
        "id": metadata.event_id,
        "type": versioned_type(type(event)),
        "subject": stream_id,
        "time": metadata.recorded_at.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "streamversion": version,
        "organization": metadata.organization_id,
        "workspace": metadata.workspace_id,
        "actor": metadata.actor,
        "correlationid": metadata.correlation_id,
        "causationid": metadata.causation_id,
        "traceparent": metadata.traceparent,
        # Not through `Envelope`, whose untyped payload would let pydantic turn NaN into null silently.
        "data": event.model_dump(mode="json"),
    }
    for name in _OPTIONAL:
        if fields[name] is None:
            del fields[name]
    return fields


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event of the log, decoded and upcast, with its position."""

    position: int
    stream_id: str
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
        try:
            envelope: Any = _of_today()(state)
            event: Event = envelope.data
        except ValidationError:
            # An older version, or something that is wrong: this way says what.
            envelope = Envelope.model_validate_json(state)
            event = envelope.event()
        return cls(position, envelope.subject, envelope.streamversion, envelope.metadata, event)


@cache
def _of_today() -> Callable[[bytes], Any]:
    """Envelope and payload of today's versions in one pass over the bytes: half the time of one by one."""
    kinds: list[Any] = [_envelope_of(event) for event in REGISTRY.types]
    union: Any = reduce(or_, kinds)
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[union, Field(discriminator="type")])
    # Of the values hardly one comes twice: to keep strings for the next time is worth it for names only.
    return SchemaValidator(adapter.core_schema, CoreConfig(cache_strings="keys")).validate_json


def _envelope_of(event: type[Event]) -> type[Envelope]:
    fields: dict[str, Any] = {"type": (Literal[versioned_type(event)], ...), "data": (event, ...)}
    return create_model(event.__name__, __base__=Envelope, **fields)


def source_of(log_id: str) -> str:
    """The CloudEvents `source` of every event of a log."""
    return f"{_SOURCE}{log_id}"


def public_bytes(position: int, log_id: str, state: bytes) -> bytes:
    """The CloudEvent as every client gets it: position and source in front of the stored bytes."""
    return b'{"position":%d,"source":"%b",%b' % (position, source_of(log_id).encode(), state[1:])


def public_event(position: int, log_id: str, state: bytes) -> dict[str, Any]:
    """`public_bytes` as JSON values."""
    fields: dict[str, Any] = json.loads(public_bytes(position, log_id, state))
    return fields


def stored_bytes(public: bytes) -> tuple[int, str, bytes]:
    """Position, log id and the stored bytes of what `public_bytes` made.

    Raises:
        ValueError: when it begins differently.
    """
    found = _PUBLIC.fullmatch(public)
    if found is None:
        raise ValueError(f"not an event of a Kinora log: {public[:80]!r}")
    return int(found[1]), found[2].decode(), b"{" + found[3]
