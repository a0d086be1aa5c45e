"""What third parties may have delivered of an organization's events, and how."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Message
from schemas.ids import NatsPublicKey, StreamId, WorkspaceId
from schemas.text import Reason, ShortName

SubscriptionKind = Literal["nats", "webhook"]
"""``nats``: a consumer of EVENTS that the subscriber pulls from; ``webhook``: requests to an address."""

SubscriptionStatus = Literal["active", "disabled", "deleted"]


class EventFilter(Message):
    """Which of an organization's events; a field that is left out filters nothing."""

    types: tuple[str, ...] = Field((), max_length=200)
    """Names without version, such as ``kinora.job.succeeded``; all when empty."""
    stream_id: StreamId | None = None
    """Events of this job, dataset, model, agent … alone."""
    workspace_id: WorkspaceId | None = None
    """Events of this workspace alone; those that belong to no workspace are left out then."""

    def takes(self, event_type: str, stream_id: str, workspace_id: str | None) -> bool:
        """Whether an event of the organization passes; `event_type` is without its version."""
        return (
            (not self.types or event_type in self.types)
            and self.stream_id in (None, stream_id)
            and self.workspace_id in (None, workspace_id)
        )


class CreateSubscriptionBody(Message):
    """POST /event-subscriptions"""

    name: ShortName
    kind: SubscriptionKind
    filter: EventFilter = EventFilter()
    start: Literal["earliest", "latest"] | Annotated[int, Field(ge=0, le=2**62)] = Field(
        "latest",
        description="earliest: from the beginning of the log; latest: what happens from now on;"
        " a number: what stands behind that position.",
    )
    pinned: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        max_length=200,
        description="Event types whose `data` is to keep an older version, such as"
        ' {"kinora.job.succeeded": 1}.',
    )
    url: str | None = Field(
        None, min_length=1, max_length=2000, description="Of kind webhook: where its requests go."
    )
    expires_in_seconds: int = Field(
        30 * 86400, ge=60, le=366 * 86400, description="Of kind nats: how long the credentials hold."
    )


class CredentialsBody(Message):
    """POST /event-subscriptions/{id}/credentials"""

    expires_in_seconds: int = Field(30 * 86400, ge=60, le=366 * 86400)
    keep_former: bool = Field(False, description="Let the credentials before these go on until they expire.")


class RotateSecretBody(Message):
    """POST /event-subscriptions/{id}/rotate-secret"""

    overlap_seconds: int = Field(
        86400, ge=0, le=30 * 86400, description="How long deliveries are signed with the former secret, too."
    )


class DisableSubscriptionBody(Message):
    """POST /event-subscriptions/{id}/disable"""

    reason: Reason = ""


class NatsConnection(Message):
    """Where a NATS subscriber reads; every part of it may be shown to anybody."""

    url: str
    stream: str
    durable: str
    """The consumer that was made for the subscriber: bind to it, and never make one."""
    subjects: tuple[str, ...]
    """What it delivers."""
    api_prefix: str
    """Of the JetStream API, instead of ``$JS.API``: set it in the client."""
    inbox_prefix: str
    """The only prefix under which the subscriber may receive: set it in the client."""


class NatsCredentials(Message):
    """The right to read, shown once."""

    public_key: NatsPublicKey
    expires_at: datetime
    credentials: str = Field(repr=False)
    """The content of a NATS credentials file (``.creds``): a JWT and the seed of its key."""


class RedeliverBody(Message):
    """POST /event-subscriptions/{id}/redeliver"""

    from_position: int = Field(
        ge=0,
        le=2**62,
        description="Of the first event to be delivered again; 0 for the beginning of the log.",
    )
    until_position: int | None = Field(
        None, ge=0, le=2**62, description="Of the last one; the newest event when it is left out."
    )
