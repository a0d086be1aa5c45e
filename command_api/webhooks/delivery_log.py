"""Deliveries as people see them, and what they may ask for: again, again from a position, a test."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row
from pydantic import BaseModel, ConfigDict

from command_api.domain.errors import Conflict, NotFound
from schemas.envelope import SPEC_VERSION, source_of
from schemas.ids import Prefix, derived_id

DeliveryStatus = Literal["pending", "delivered", "failed"]
STATUSES: tuple[DeliveryStatus, ...] = ("pending", "delivered", "failed")
TEST_TYPE = "kinora.subscription.test.v1"
"""Of an event that stands in no log and has no position."""
OPEN_REDELIVERIES = 10
"""Of one subscription."""

_SHOWN: LiteralString = """
SELECT delivery_id AS id, subscription_id, event_id, event_type, stream_id AS subject, position, status,
       jsonb_array_length(attempts) AS attempt_count, attempts -> -1 AS last_attempt,
       CASE WHEN status = 'pending' THEN due_at END AS next_attempt_at, created_at, finished_at
  FROM kinora_webhook_deliveries
"""


class AttemptShown(BaseModel):
    """One request to a receiver, and what came of it."""

    model_config = ConfigDict(frozen=True)

    attempted_at: datetime
    seconds: float
    """Until the answer, or until there was none."""
    status: int | None = None
    """Of the answer."""
    answer: str | None = None
    """The beginning of its body."""
    error: str | None = None
    """Why there is none: timeout, unreachable, host_unknown, address_refused, unsigned or log_restored."""
    message: str | None = None


class DeliveryShown(BaseModel):
    """An event on its way to a receiver."""

    model_config = ConfigDict(frozen=True)

    id: str
    subscription_id: str
    event_id: str
    """Also the `webhook-id` of every request."""
    event_type: str
    """Without its version."""
    subject: str
    position: int | None
    """None for a test."""
    status: DeliveryStatus
    attempt_count: int
    """Of those that are remembered, the newest 20."""
    last_attempt: AttemptShown | None
    next_attempt_at: datetime | None
    """While it is pending."""
    created_at: datetime
    finished_at: datetime | None


class DeliveryDetail(DeliveryShown):
    """An event on its way to a receiver, with every attempt."""

    attempts: list[AttemptShown]


class RedeliveryShown(BaseModel):
    """A stretch of history that is delivered again."""

    model_config = ConfigDict(frozen=True)

    id: str
    subscription_id: str
    from_position: int
    until_position: int
    position: int
    """Everything up to here is among the deliveries again."""
    requested_by: str
    created_at: datetime
    finished_at: datetime | None


class DeliveryState(BaseModel):
    """How a webhook is doing."""

    model_config = ConfigDict(frozen=True)

    position: int | None
    """Everything up to here is among the deliveries, or not wanted; None before the first look."""
    head: int
    """Position of the newest event of the whole log."""
    pending: int
    oldest_pending_at: datetime | None
    failing_since: datetime | None
    """The first failure since the last success."""
    failures: int
    """Attempts in a row."""
    last_delivered_at: datetime | None
    redeliveries: list[RedeliveryShown]
    """The newest 20."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook of an organization, whose deliveries are read and asked for."""

    organization_id: str
    subscription_id: str


async def find_webhook(
    connection: AsyncConnection[Any], organization_id: str, subscription_id: str
) -> Webhook:
    """The webhook of that id.

    Raises:
        NotFound: the organization has no such subscription.
        Conflict: it is of kind nats.
    """
    cursor = await connection.execute(
        "SELECT sealed IS NOT NULL FROM kinora_subscriptions"
        " WHERE subscription_id = %s AND organization_id = %s",
        (subscription_id, organization_id),
    )
    row = await cursor.fetchone()
    if row is None:
        raise NotFound(f"subscription {subscription_id} does not exist")
    if not row[0]:
        raise Conflict(
            f"subscription {subscription_id} is of kind nats, whose subscriber fetches events by itself; only"
            " webhooks have deliveries",
            code="subscription_of_other_kind",
        )
    return Webhook(organization_id, subscription_id)


async def page(
    connection: AsyncConnection[Any],
    webhook: Webhook,
    statuses: Sequence[str] | None,
    before: str | None,
    limit: int,
) -> list[DeliveryShown]:
    """Newest first; `before` is the id of the last one of the page before."""
    text: LiteralString = _SHOWN + " WHERE subscription_id = %(subscription_id)s"
    if before is not None:
        text += " AND delivery_id < %(before)s"
    if statuses is not None:
        text += " AND status = ANY(%(statuses)s)"
        if "delivered" not in statuses:
            text += " AND status <> 'delivered'"  # excludes nothing more, and lets the planner use its index
    values = {
        "subscription_id": webhook.subscription_id,
        "before": before,
        "statuses": None if statuses is None else list(statuses),
        "limit": limit,
    }
    async with connection.cursor(row_factory=class_row(DeliveryShown)) as cursor:
        await cursor.execute(text + " ORDER BY delivery_id DESC LIMIT %(limit)s", values)
        return await cursor.fetchall()


async def find(connection: AsyncConnection[Any], webhook: Webhook, delivery_id: str) -> DeliveryDetail:
    """One delivery.

    Raises:
        NotFound: when the webhook has none of that id.
    """
    async with connection.cursor(row_factory=class_row(DeliveryDetail)) as cursor:
        await cursor.execute(
            _SHOWN.replace("SELECT ", "SELECT attempts, ", 1)
            + " WHERE delivery_id = %s AND subscription_id = %s",
            (delivery_id, webhook.subscription_id),
        )
        found = await cursor.fetchone()
    if found is None:
        raise _unknown(delivery_id)
    return found


async def redeliver(connection: AsyncConnection[Any], webhook: Webhook, delivery_id: str) -> None:
    """Make it due now, whatever became of it before.

    Raises:
        NotFound: when the webhook has none of that id.
    """
    cursor = await connection.execute(
        "UPDATE kinora_webhook_deliveries"
        "   SET status = 'pending', due_at = now(), window_from = NULL, tries = 0, finished_at = NULL"
        " WHERE delivery_id = %s AND subscription_id = %s",
        (delivery_id, webhook.subscription_id),
    )
    if cursor.rowcount == 0:
        raise _unknown(delivery_id)


async def redeliver_from(
    connection: AsyncConnection[Any],
    webhook: Webhook,
    first: int,
    last: int,
    *,
    requested_by: str,
    request_id: str,
) -> RedeliveryShown:
    """Have the events from `first` to `last` delivered again; the same request again asks for no more.

    Raises:
        Conflict: ``too_many_redeliveries``.
    """
    redelivery_id = derived_id(Prefix.REDELIVERY, request_id, webhook.subscription_id)
    values = {
        "redelivery_id": redelivery_id,
        "subscription_id": webhook.subscription_id,
        "organization_id": webhook.organization_id,
        "first": first,
        "last": last,
        "requested_by": requested_by,
        "most": OPEN_REDELIVERIES,
    }
    await connection.execute(
        "INSERT INTO kinora_webhook_redeliveries (redelivery_id, subscription_id, organization_id,"
        "       from_position, until_position, position, requested_by, created_at)"
        " SELECT %(redelivery_id)s, %(subscription_id)s, %(organization_id)s, %(first)s, %(last)s,"
        "        greatest(%(first)s - 1, 0), %(requested_by)s, now()"
        "  WHERE (SELECT count(*) FROM kinora_webhook_redeliveries"
        "          WHERE subscription_id = %(subscription_id)s AND finished_at IS NULL) < %(most)s"
        " ON CONFLICT DO NOTHING",
        values,
    )
    for found in await _redeliveries(connection, webhook, redelivery_id):
        return found
    raise Conflict(
        f"{OPEN_REDELIVERIES} redeliveries of this subscription are under way; wait until one is finished",
        code="too_many_redeliveries",
    )


async def test(
    connection: AsyncConnection[Any],
    webhook: Webhook,
    log_id: str,
    *,
    actor: str,
    workspace_id: str,
    request_id: str,
    now: datetime,
) -> str:
    """Have an event sent once that says it is a test; returns the delivery's id."""
    delivery_id = derived_id(Prefix.DELIVERY, request_id, webhook.subscription_id)
    event_id = derived_id(Prefix.EVENT, request_id, webhook.subscription_id)
    body = {
        "source": source_of(log_id),
        "actor": actor,
        "causationid": request_id,
        "correlationid": request_id,
        "data": {"message": "A test of this webhook: nothing happened, and the log does not hold it."},
        "datacontenttype": "application/json",
        "id": event_id,
        "organization": webhook.organization_id,
        "specversion": SPEC_VERSION,
        "subject": webhook.subscription_id,
        "time": now.isoformat().replace("+00:00", "Z"),
        "type": TEST_TYPE,
        "workspace": workspace_id,
    }
    await connection.execute(
        "INSERT INTO kinora_webhook_deliveries (delivery_id, subscription_id, organization_id, event_id,"
        "       event_type, stream_id, body, status, due_at, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, 'pending', %s, %s) ON CONFLICT DO NOTHING",
        (
            delivery_id,
            webhook.subscription_id,
            webhook.organization_id,
            event_id,
            TEST_TYPE.rpartition(".")[0],
            webhook.subscription_id,
            json.dumps(body, separators=(",", ":")).encode(),
            now,
            now,
        ),
    )
    return delivery_id


async def state(connection: AsyncConnection[Any], webhook: Webhook, head: int) -> DeliveryState:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT w.position, w.failing_since, coalesce(w.failures, 0) AS failures, w.last_delivered_at,"
            "       d.pending, d.oldest_pending_at"
            "  FROM (SELECT count(*) AS pending, min(created_at) AS oldest_pending_at"
            "          FROM kinora_webhook_deliveries"
            "         WHERE subscription_id = %(subscription_id)s AND status = 'pending') d"
            "  LEFT JOIN kinora_webhooks w ON w.subscription_id = %(subscription_id)s",
            {"subscription_id": webhook.subscription_id},
        )
        found = await cursor.fetchone() or {}
    return DeliveryState(head=head, redeliveries=await _redeliveries(connection, webhook), **found)


@dataclass(frozen=True, slots=True)
class FailingWebhook:
    """A receiver that takes nothing at present."""

    subscription_id: str
    failing_since: datetime
    failures: int
    pending: int
    last: str
    """What came of the last attempt."""


async def failing_webhooks(connection: AsyncConnection[Any]) -> list[FailingWebhook]:
    """Of all organizations, those whose last attempts failed, the longest first."""
    async with connection.cursor(row_factory=class_row(FailingWebhook)) as cursor:
        await cursor.execute(
            "SELECT w.subscription_id, w.failing_since AT TIME ZONE 'UTC' AS failing_since, w.failures,"
            "       d.pending, coalesce(d.last, '') AS last"
            "  FROM kinora_webhooks w CROSS JOIN LATERAL ("
            "       SELECT count(*) AS pending,"
            "              (array_agg(coalesce(attempts -> -1 ->> 'message',"
            "                                  'status ' || (attempts -> -1 ->> 'status'))"
            "                         ORDER BY attempts -> -1 ->> 'attempted_at' DESC NULLS LAST))[1] AS last"
            "         FROM kinora_webhook_deliveries"
            "        WHERE subscription_id = w.subscription_id AND status = 'pending') d"
            " WHERE w.failing_since IS NOT NULL ORDER BY w.failing_since LIMIT 20"
        )
        return await cursor.fetchall()


async def _redeliveries(
    connection: AsyncConnection[Any], webhook: Webhook, redelivery_id: str | None = None
) -> list[RedeliveryShown]:
    async with connection.cursor(row_factory=class_row(RedeliveryShown)) as cursor:
        await cursor.execute(
            "SELECT redelivery_id AS id, subscription_id, from_position, until_position, position,"
            "       requested_by, created_at, finished_at"
            "  FROM kinora_webhook_redeliveries"
            " WHERE subscription_id = %(subscription_id)s"
            "   AND (%(redelivery_id)s::text IS NULL OR redelivery_id = %(redelivery_id)s)"
            " ORDER BY created_at DESC, redelivery_id DESC LIMIT 20",
            {"subscription_id": webhook.subscription_id, "redelivery_id": redelivery_id},
        )
        return await cursor.fetchall()


def _unknown(delivery_id: str) -> NotFound:
    return NotFound(f"delivery {delivery_id} does not exist, or was forgotten after its time was over")
