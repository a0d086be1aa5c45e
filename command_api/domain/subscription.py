"""A subscription: what one third party has delivered of an organization's events."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, assert_never

from command_api.domain.errors import Conflict, ImpossibleHistory, Invalid, NotFound
from command_api.domain.webhook_addresses import check_url
from schemas.commands.subscription import (
    CreateSubscription,
    DeleteSubscription,
    DisableSubscription,
    EnableSubscription,
    IssueSubscriptionCredentials,
    RotateSubscriptionSecret,
)
from schemas.events import REGISTRY, Event
from schemas.events.identity import PERSONAL
from schemas.events.subscription import (
    SubscriptionCreated,
    SubscriptionCredentialsIssued,
    SubscriptionDeleted,
    SubscriptionDisabled,
    SubscriptionEnabled,
    SubscriptionSecretRotated,
)
from schemas.naming import instead_of
from schemas.subscriptions import EventFilter, SubscriptionKind, SubscriptionStatus


@dataclass(frozen=True, slots=True)
class Absent:
    """Nobody subscribed under this id."""


@dataclass(frozen=True, slots=True)
class Active:
    """Events are delivered."""

    phase: ClassVar[SubscriptionStatus] = "active"
    created: SubscriptionCreated


@dataclass(frozen=True, slots=True)
class Disabled:
    """A webhook that rests."""

    phase: ClassVar[SubscriptionStatus] = "disabled"
    created: SubscriptionCreated


@dataclass(frozen=True, slots=True)
class Deleted:
    """Over for good."""

    phase: ClassVar[SubscriptionStatus] = "deleted"
    created: SubscriptionCreated


State: TypeAlias = Absent | Active | Disabled | Deleted
INITIAL: State = Absent()

SubscriptionCommand: TypeAlias = (
    CreateSubscription
    | IssueSubscriptionCredentials
    | RotateSubscriptionSecret
    | DisableSubscription
    | EnableSubscription
    | DeleteSubscription
)


def decide(state: State, command: SubscriptionCommand) -> list[Event]:
    match command:
        case CreateSubscription():
            return _create(state, command)
        case IssueSubscriptionCredentials():
            _of_kind(state, command.subscription_id, "nats")
            return [
                SubscriptionCredentialsIssued(
                    public_key=command.public_key,
                    expires_at=command.expires_at,
                    former_void=not command.keep_former,
                )
            ]
        case RotateSubscriptionSecret(former_until=former_until):
            _of_kind(state, command.subscription_id, "webhook")
            return [SubscriptionSecretRotated(former_until=former_until)]
        case DisableSubscription(reason=reason, detail=detail):
            live = _of_kind(state, command.subscription_id, "webhook")
            return [] if isinstance(live, Disabled) else [SubscriptionDisabled(reason=reason, detail=detail)]
        case EnableSubscription():
            live = _of_kind(state, command.subscription_id, "webhook")
            return [] if isinstance(live, Active) else [SubscriptionEnabled()]
        case DeleteSubscription():
            if isinstance(state, Deleted):
                return []
            _live(state, command.subscription_id)
            return [SubscriptionDeleted()]
        case _:
            assert_never(command)


def evolve(state: State, event: Event) -> State:
    match state, event:
        case Absent(), SubscriptionCreated():
            return Active(event)
        case ((Active() | Disabled()), (SubscriptionCredentialsIssued() | SubscriptionSecretRotated())):
            return state
        case Active(created=created), SubscriptionDisabled():
            return Disabled(created)
        case Disabled(created=created), SubscriptionEnabled():
            return Active(created)
        case ((Active(created=created) | Disabled(created=created)), SubscriptionDeleted()):
            return Deleted(created)
        case _:
            raise ImpossibleHistory(state, event)


def _create(state: State, command: CreateSubscription) -> list[Event]:
    if not isinstance(state, Absent):
        raise Conflict(
            f"subscription {command.subscription_id} exists already; use a new id", code="subscription_exists"
        )
    _check_filter(command.filter, command.kind)
    if command.kind == "nats" and command.pinned:
        raise Invalid.field(
            "/pinned",
            "invalid_request",
            "a NATS subscriber reads the very messages of the stream, whose versions are those of the log;"
            " leave pinned out, or ask for a webhook",
        )
    _check_pinned(command.pinned)
    created = SubscriptionCreated(
        name=command.name,
        owner_id=command.owner_id,
        kind=command.kind,
        filter=command.filter,
        after=command.after,
        pinned=command.pinned,
        url=command.url,
    )
    if command.kind == "webhook":
        if command.url is None:
            raise Invalid.field("/url", "invalid_request", "a webhook needs the url that its requests go to")
        check_url(command.url)
        return [created]
    if command.url is not None:
        raise Invalid.field(
            "/url",
            "invalid_request",
            "a subscription of kind nats has no url; leave it out, or ask for a webhook",
        )
    if command.public_key is None or command.expires_at is None:
        raise Invalid("a subscription of kind nats begins with credentials; name their key and their end")
    issued = SubscriptionCredentialsIssued(
        public_key=command.public_key, expires_at=command.expires_at, former_void=False
    )
    return [created, issued]


def _check_filter(wanted: EventFilter, kind: SubscriptionKind) -> None:
    known = {event.TYPE for event in REGISTRY.types}
    for number, name in enumerate(wanted.types):
        if name not in known:
            message = f"there is no event type {name[:60]!a}{instead_of(name, sorted(known))}"
            raise Invalid.field(f"/filter/types/{number}", "unknown_value", message)
        if name.startswith(PERSONAL):
            message = f"{name} happens in a person's own stream, which is of no organization; leave it out"
            raise Invalid.field(f"/filter/types/{number}", "bad_filter", message)
    if kind == "nats" and wanted.stream_id is not None:
        raise Invalid.field(
            "/filter/stream_id",
            "invalid_request",
            "NATS subjects name no single job, dataset or model; leave stream_id out and drop other subjects"
            " of events yourself, or ask for a webhook",
        )


def _check_pinned(pinned: Mapping[str, int]) -> None:
    newest = {event.TYPE: event.VERSION for event in REGISTRY.types}
    for name, version in pinned.items():
        pointer = f"/pinned/{name.replace('~', '~0').replace('/', '~1')}"
        if name not in newest:
            message = f"there is no event type {name[:60]!a}{instead_of(name, sorted(newest))}"
            raise Invalid.field(pointer, "unknown_value", message)
        if not 1 <= version <= newest[name]:
            raise Invalid.field(
                pointer,
                "unknown_value",
                f"{name} has versions 1 to {newest[name]}, and no version {version}",
            )


def _live(state: State, subscription_id: str) -> Active | Disabled:
    if isinstance(state, Absent | Deleted):
        raise NotFound(f"subscription {subscription_id} does not exist")
    return state


def _of_kind(state: State, subscription_id: str, kind: SubscriptionKind) -> Active | Disabled:
    live = _live(state, subscription_id)
    if live.created.kind != kind:
        raise Conflict(
            f"subscription {subscription_id} is of kind {live.created.kind}; this is for kind {kind} only",
            code="subscription_of_other_kind",
        )
    return live
