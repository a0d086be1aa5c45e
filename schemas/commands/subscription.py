"""Commands on subscriptions."""

from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from schemas.commands.base import Command
from schemas.ids import NatsPublicKey, SubscriptionId, UserId
from schemas.subscriptions import EventFilter, SubscriptionKind


class CreateSubscription(Command):
    """`public_key` and `expires_at` are those of a NATS subscriber's first credentials."""

    TYPE: ClassVar[str] = "create_subscription"
    subscription_id: SubscriptionId
    name: str
    owner_id: UserId
    kind: SubscriptionKind
    filter: EventFilter
    after: int = Field(ge=0)
    pinned: dict[str, int]
    url: str | None = None
    public_key: NatsPublicKey | None = None
    expires_at: AwareDatetime | None = None


class IssueSubscriptionCredentials(Command):
    TYPE: ClassVar[str] = "issue_subscription_credentials"
    subscription_id: SubscriptionId
    public_key: NatsPublicKey
    expires_at: AwareDatetime
    keep_former: bool


class RotateSubscriptionSecret(Command):
    """The new secret itself travels beside the command, encrypted."""

    TYPE: ClassVar[str] = "rotate_subscription_secret"
    subscription_id: SubscriptionId
    former_until: AwareDatetime


class DisableSubscription(Command):
    TYPE: ClassVar[str] = "disable_subscription"
    subscription_id: SubscriptionId
    reason: Literal["requested", "failing", "gone"]
    detail: str = ""


class EnableSubscription(Command):
    TYPE: ClassVar[str] = "enable_subscription"
    subscription_id: SubscriptionId


class DeleteSubscription(Command):
    TYPE: ClassVar[str] = "delete_subscription"
    subscription_id: SubscriptionId
