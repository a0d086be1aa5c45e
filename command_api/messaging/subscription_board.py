"""Who subscribes to events right now, and whose keys are void: a fold of the log, kept in memory."""

from dataclasses import dataclass, field
from datetime import datetime

from schemas.envelope import Recorded
from schemas.events import Event
from schemas.events import subscription as events
from schemas.subjects import subscriber_durable, subscription_subjects
from schemas.subscriptions import EventFilter

SUBSCRIPTION_EVENTS: tuple[type[Event], ...] = (
    events.SubscriptionCreated,
    events.SubscriptionCredentialsIssued,
    events.SubscriptionDeleted,
)


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Somebody who reads over NATS."""

    subscription_id: str
    organization_id: str
    after: int
    """The position that it began behind."""
    wanted: EventFilter

    @property
    def durable(self) -> str:
        return subscriber_durable(self.organization_id, self.subscription_id)

    @property
    def subjects(self) -> tuple[str, ...]:
        return subscription_subjects(self.organization_id, self.wanted.workspace_id, self.wanted.types)


@dataclass(frozen=True, slots=True)
class VoidKey:
    """A key that stopped reading before its JWT expires."""

    since: datetime
    expires_at: datetime


@dataclass
class SubscriptionBoard:
    """Apply every subscription event in log order; the rest are questions."""

    subscribers: dict[str, Subscriber] = field(default_factory=dict)
    """Of kind nats, by the id of the subscription."""
    void_keys: dict[str, VoidKey] = field(default_factory=dict)
    _keys: dict[str, dict[str, datetime]] = field(default_factory=dict)
    """Valid keys of every subscriber, and when their JWTs expire."""

    def apply(self, recorded: Recorded) -> None:
        """Fold one event."""
        subscription_id = recorded.stream_id
        match recorded.event:
            case events.SubscriptionCreated(kind="nats") as created:
                self.subscribers[subscription_id] = Subscriber(
                    subscription_id, recorded.metadata.organization_id or "", created.after, created.filter
                )
            case events.SubscriptionCredentialsIssued() as issued:
                if issued.former_void:
                    self._void(recorded)
                self._keys.setdefault(subscription_id, {})[issued.public_key] = issued.expires_at
            case events.SubscriptionDeleted():
                self._void(recorded)
                self.subscribers.pop(subscription_id, None)

    def _void(self, recorded: Recorded) -> None:
        for key, expires_at in self._keys.pop(recorded.stream_id, {}).items():
            self.void_keys[key] = VoidKey(recorded.metadata.recorded_at, expires_at)
