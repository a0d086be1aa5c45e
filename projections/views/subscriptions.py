"""Subscriptions of third parties, as their own streams tell; how far each has read stands elsewhere."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal, LiteralString

from psycopg import AsyncConnection

from projections.documents import (
    Cursor,
    Document,
    DocumentQueries,
    DocumentView,
    StoredDocument,
    beginning,
    begun,
    document_table,
    evolve,
)
from schemas.envelope import Recorded
from schemas.events import subscription as events
from schemas.subscriptions import EventFilter, SubscriptionKind, SubscriptionStatus


class SubscriptionView(Document):
    """A subscription as people see it."""

    status: SubscriptionStatus
    name: str
    owner_id: str
    kind: SubscriptionKind
    filter: EventFilter
    after: int
    """It began with the first event behind this position."""
    pinned: dict[str, int]
    url: str | None = None
    """Of a webhook."""
    disabled_reason: Literal["requested", "failing", "gone"] | None = None
    disabled_detail: str = ""
    credentials_expire_at: datetime | None = None
    """Of the newest NATS credentials."""
    secret_rotated_at: datetime | None = None
    """When the signing secret of a webhook was last replaced."""


class Subscriptions(DocumentView[SubscriptionView]):
    name = "subscriptions"
    version = 1
    table: ClassVar[LiteralString] = "subscriptions"
    model = SubscriptionView
    tables = (document_table("subscriptions"),)
    types = (
        events.SubscriptionCreated.TYPE,
        events.SubscriptionCredentialsIssued.TYPE,
        events.SubscriptionSecretRotated.TYPE,
        events.SubscriptionDisabled.TYPE,
        events.SubscriptionEnabled.TYPE,
        events.SubscriptionDeleted.TYPE,
    )
    census = (("subscriptions", (events.SubscriptionCreated.TYPE,)),)

    def fold(self, before: SubscriptionView | None, recorded: Recorded) -> SubscriptionView:
        event = recorded.event
        if isinstance(event, events.SubscriptionCreated):
            return SubscriptionView(
                **beginning(recorded),
                status="active",
                name=event.name,
                owner_id=event.owner_id,
                kind=event.kind,
                filter=event.filter,
                after=event.after,
                pinned=event.pinned,
                url=event.url,
            )
        subscription = begun(before, recorded)
        match event:
            case events.SubscriptionCredentialsIssued(expires_at=expires_at):
                return evolve(subscription, recorded, credentials_expire_at=expires_at)
            case events.SubscriptionSecretRotated():
                return evolve(subscription, recorded, secret_rotated_at=recorded.metadata.recorded_at)
            case events.SubscriptionDisabled(reason=reason, detail=detail):
                return evolve(
                    subscription, recorded, status="disabled", disabled_reason=reason, disabled_detail=detail
                )
            case events.SubscriptionEnabled():
                return evolve(
                    subscription, recorded, status="active", disabled_reason=None, disabled_detail=""
                )
            case events.SubscriptionDeleted():
                return evolve(subscription, recorded, status="deleted")
            case _:
                return evolve(subscription, recorded)


_QUERIES = DocumentQueries("subscriptions", "subscriptions", SubscriptionView, hidden=("deleted",))


async def get(
    connection: AsyncConnection[Any], organization_id: str, subscription_id: str
) -> SubscriptionView | None:
    """The subscription, or None when the organization has none of that id or deleted it."""
    return await _QUERIES.get(connection, organization_id, subscription_id)


async def page(
    connection: AsyncConnection[Any],
    organization_id: str,
    *,
    limit: int,
    after: Cursor | None = None,
    statuses: Sequence[str] | None = None,
) -> list[StoredDocument]:
    """Newest first; `after` is (created_at, id) of the last row of the page before."""
    return await _QUERIES.page(connection, organization_id, limit=limit, after=after, statuses=statuses)
