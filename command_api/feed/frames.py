"""The frames of the WebSocket subprotocol `kinora.events.v1`, each a JSON object with a `type`."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, Field, TypeAdapter, model_validator

from command_api.problem_catalogue import CATALOGUE
from projections.sentences import Level
from schemas.base import Message
from schemas.ids import JobId, StreamId, WorkspaceId

SUBPROTOCOL = "kinora.events.v1"
SCOPE = "events:subscribe"
"""What whoever follows needs."""

RESTARTING = 1012
"""What a WebSocket is closed with, too, when the service stops."""
BAD_FRAME = 4400
UNAUTHENTICATED = 4401
FORBIDDEN = 4403
STALLED = 4408
TOO_MUCH = 4429

SubscriptionName = Annotated[str, Field(min_length=1, max_length=64)]


class EventFilter(Message):
    """Which events a subscription wants; all fields together, an absent one lets everything pass."""

    types: tuple[str, ...] | None = Field(None, min_length=1, max_length=64)
    job_id: JobId | None = None
    stream_id: StreamId | None = None
    workspace_id: WorkspaceId | None = None
    min_level: Level | None = None
    """Only events that deserve at least so much attention, as `GET /activity` shows it."""
    telemetry: bool = False
    """Full-rate measurements of `job_id` beside its events, at most ten frames a second."""


class From(Message):
    """Where a subscription begins: behind a position, 0 being the beginning, or at a time."""

    position: int | None = Field(None, ge=0, le=2**62, strict=True)
    time: AwareDatetime | None = None
    """At the first event that was recorded then or later."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.position is None) == (self.time is None):
            raise ValueError("give a position or a time")
        return self


Mode = Literal["lossless", "conflated"]


class Subscribe(Message):
    """Begin a subscription; `sub` names it in every frame."""

    type: Literal["subscribe"]
    sub: SubscriptionName
    filter: EventFilter = EventFilter()
    start: Annotated[From | Literal["earliest", "latest"], Field(alias="from")] = "latest"
    mode: Mode = "lossless"
    log_id: str | None = Field(None, max_length=64)
    """The log that the position belongs to; another one is answered with `reset`."""
    pinned: tuple[str, ...] = Field((), max_length=64)
    """Versions to be had of events whatever version was stored, such as ``kinora.job.progressed.v1``."""


class Unsubscribe(Message):
    """End a subscription."""

    type: Literal["unsubscribe"]
    sub: SubscriptionName


class Ack(Message):
    """How far the client has dealt with a subscription; shown in heartbeats, so that lag is visible."""

    type: Literal["ack"]
    sub: SubscriptionName
    position: int = Field(ge=0, le=2**62, strict=True)


class Ping(Message):
    """Answered with a heartbeat at once."""

    type: Literal["ping"]


class Reauth(Message):
    """A fresh access token for the same person and organization, before the old one ends."""

    type: Literal["reauth"]
    token: str = Field(max_length=8192, repr=False)


ClientFrame = Annotated[Subscribe | Unsubscribe | Ack | Ping | Reauth, Field(discriminator="type")]
CLIENT_FRAME: TypeAdapter[ClientFrame] = TypeAdapter(ClientFrame)

Frame = dict[str, Any]


def hello(head: int, log_id: str, heartbeat_seconds: float) -> Frame:
    """The first frame of a connection."""
    return {"type": "hello", "head": head, "log_id": log_id, "heartbeat_seconds": heartbeat_seconds}


def event_head(sub: str) -> str:
    """How the event frames of a subscription begin; `event_rest` is the same for all of them."""
    return f'{{"type":"event","sub":{json.dumps(sub, ensure_ascii=False)}'


def event_rest(position: int, public: bytes) -> str:
    """One event of the log; its bytes are put in as they are, never written anew."""
    return f',"position":{position},"event":{public.decode()}}}'


def caught_up(sub: str, position: int) -> Frame:
    """History ends here; what follows is live."""
    return {"type": "caught_up", "sub": sub, "position": position}


def heartbeat(head: int, subscriptions: dict[str, dict[str, int]]) -> Frame:
    """Proof of life; the distance of each subscription to `head` is its lag."""
    return {"type": "heartbeat", "head": head, "subscriptions": subscriptions}


def reset(sub: str, log_id: str, reason: str) -> Frame:
    """The position asked for means nothing here; the client has to choose anew where it begins.

    `reason` is ``log_restored`` when the client's log was restored from a backup, else ``log_changed``.
    """
    return {"type": "reset", "sub": sub, "earliest": 0, "log_id": log_id, "reason": reason}


def error(code: str, message: str, sub: str | None = None, field: str | None = None) -> Frame:
    """Something asked for is not possible; the connection goes on unless a close follows.

    `field` points to what is wrong in the client's frame (RFC 6901); None when no single field is.
    """
    remedy = CATALOGUE[code].remedy
    return {"type": "error", "sub": sub, "code": code, "field": field, "message": message, "remedy": remedy}
