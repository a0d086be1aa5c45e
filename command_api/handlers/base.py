"""What every handler is given and gives back: who asks, the streams it may read, the events it wants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from schemas.commands import Command
from schemas.events import Event
from schemas.ids import Prefix, new_id

SYSTEM = "system:"


@dataclass(frozen=True, slots=True)
class Idempotency:
    """Names one request for good: a repeat by the same principal under the same key is the same request."""

    principal: str
    key: str
    """Of a part of the control plane in the clear, of a person a keyed hash."""
    request_hmac: bytes
    """Keyed hash of the request, so that the same key on another request is noticed."""


@dataclass(frozen=True, slots=True)
class Context:
    """Who asks, where, and as part of which story; becomes the metadata of the events."""

    actor: str
    """``usr_…``, ``agt_…`` or ``system:<part>``."""
    organization_id: str | None
    workspace_id: str | None
    request_id: str
    correlation_id: str
    causation_id: str
    traceparent: str | None = None
    idempotency: Idempotency | None = None

    @property
    def is_system(self) -> bool:
        """A part of the control plane itself: it may act on every organization's streams."""
        return self.actor.startswith(SYSTEM)

    @classmethod
    def system(
        cls,
        part: str,
        *,
        organization_id: str | None = None,
        workspace_id: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
        key: str | None = None,
    ) -> "Context":
        """The context of a policy or another part of the control plane.

        With a `key` the command is idempotent and its events' ids derive from the key, so a repeated
        policy makes the same events or none.
        """
        request_id = new_id(Prefix.REQUEST)
        actor = f"{SYSTEM}{part}"
        return cls(
            actor=actor,
            organization_id=organization_id,
            workspace_id=workspace_id,
            request_id=request_id,
            correlation_id=correlation_id or request_id,
            causation_id=causation_id or request_id,
            traceparent=traceparent,
            idempotency=None if key is None else Idempotency(actor, key, b""),
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """A folded stream; version 0 is the empty stream in its aggregate's initial state."""

    state: Any
    version: int
    organization_id: str | None = None
    workspace_id: str | None = None


class Streams(Protocol):
    """The only thing a handler may read."""

    def load(self, stream_id: str) -> Loaded:
        """Fold a stream.

        Raises:
            NotFound: when the stream belongs to an organization that the context may not see.
        """


@dataclass(frozen=True, slots=True)
class StreamEvents:
    """Events for one stream, decided at `expected_version`."""

    stream_id: str
    expected_version: int
    events: Sequence[Event]


Changes = Sequence[StreamEvents]
"""What a handler wants appended, in this order, in one transaction. A stream may appear once."""

C = TypeVar("C", bound=Command)
S = TypeVar("S")

Handler = Callable[[Any, Context, Streams], Changes]
"""``(command, context, streams) -> changes``: synchronous, and pure apart from what `streams` reads."""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A handler that says beforehand which streams it is going to read, so that many are read at once.

    No more than a hint: what it reads beside these is read when it asks.
    """

    handler: Handler
    streams_of: Callable[[Any], Sequence[str]]

    def __call__(self, command: Any, context: Context, streams: Streams) -> Changes:
        return self.handler(command, context, streams)


def reading(streams_of: Callable[[Any], Sequence[str]]) -> Callable[[Handler], Foreseen]:
    """Decorator for a handler that reads these streams."""
    return lambda handler: Foreseen(handler, streams_of)


def single_aggregate(decide: Callable[[S, C], Sequence[Event]], stream_of: Callable[[C], str]) -> Handler:
    """The handler of a command that one aggregate decides alone.

    For example ``single_aggregate(job.decide, lambda command: command.job_id)``.
    """

    def handle(command: C, context: Context, streams: Streams) -> Changes:
        stream_id = stream_of(command)
        loaded = streams.load(stream_id)
        return [StreamEvents(stream_id, loaded.version, decide(loaded.state, command))]

    return Foreseen(handle, lambda command: (stream_of(command),))
