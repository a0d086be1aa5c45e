"""Subscriptions: what third parties have delivered, from their making to their end."""

from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from schemas.events.registry import REGISTRY, Event
from schemas.ids import NatsPublicKey, UserId
from schemas.subscriptions import EventFilter, SubscriptionKind


@REGISTRY.register
class SubscriptionCreated(Event):
    """Somebody lets a third party have the organization's events from a position on."""

    TYPE: ClassVar[str] = "kinora.subscription.created"
    name: str
    owner_id: UserId
    kind: SubscriptionKind
    filter: EventFilter
    after: int = Field(ge=0)
    """Delivery begins with the first event behind this position; 0 for the beginning of the log."""
    pinned: dict[str, int]
    """Event types whose payload is delivered as an older version, and which."""
    url: str | None = None
    """Where the requests of a webhook go."""


@REGISTRY.register
class SubscriptionCredentialsIssued(Event):
    """The subscriber was given a NATS key and the right to read until then; the key's seed stands nowhere."""

    TYPE: ClassVar[str] = "kinora.subscription.credentials_issued"
    public_key: NatsPublicKey
    expires_at: AwareDatetime
    former_void: bool
    """Whether the keys before this one stopped reading at the same moment."""


@REGISTRY.register
class SubscriptionSecretRotated(Event):
    """Deliveries of a webhook are signed with a new secret, and until `former_until` with the former, too."""

    TYPE: ClassVar[str] = "kinora.subscription.secret_rotated"
    former_until: AwareDatetime


@REGISTRY.register
class SubscriptionDisabled(Event):
    """Nothing is delivered until it is enabled again, which goes on where it stopped."""

    TYPE: ClassVar[str] = "kinora.subscription.disabled"
    reason: Literal["requested", "failing", "gone"]
    """``failing``: the receiver took nothing for three days; ``gone``: it answered 410."""
    detail: str = ""


@REGISTRY.register
class SubscriptionEnabled(Event):
    """Delivery goes on."""

    TYPE: ClassVar[str] = "kinora.subscription.enabled"


@REGISTRY.register
class SubscriptionDeleted(Event):
    """Nothing is delivered any more, for good; credentials and secrets are void."""

    TYPE: ClassVar[str] = "kinora.subscription.deleted"
