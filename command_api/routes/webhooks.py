"""What became of a webhook's deliveries: the log of them, deliveries once more, a test."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from psycopg import AsyncConnection

from command_api.domain.errors import Invalid
from command_api.problems import BadPosition
from command_api.routes.calling import ClosedRoute, needs
from command_api.routes.commanding import Asking, AskingOfRequest
from command_api.routes.problem_docs import COMMAND, QUERY, problems
from command_api.routes.reading import CursorParameter, Limit, Page, ReadingOfRequest, chosen
from command_api.webhooks import delivery_log
from command_api.webhooks.delivery_log import DeliveryDetail, DeliveryShown, DeliveryState, RedeliveryShown
from schemas.ids import DeliveryId, SubscriptionId
from schemas.subscriptions import RedeliverBody

router = APIRouter(
    prefix="/event-subscriptions/{subscription_id}",
    tags=["event subscriptions"],
    dependencies=[needs("events:subscribe")],
    route_class=ClosedRoute,
)
_ADMINISTER = needs("org:admin")


class DeliveryAsked(DeliveryDetail):
    """A delivery that was asked for."""

    command_id: str


class RedeliveryAsked(RedeliveryShown):
    """A redelivery that was asked for."""

    command_id: str


@router.get(
    "/delivery-state",
    operation_id="event_subscriptions_delivery_state",
    response_model=DeliveryState,
    responses=problems(*QUERY, 409),
    summary="How far a webhook is, what waits, and since when it fails",
)
async def state(subscription_id: SubscriptionId, reading: ReadingOfRequest) -> DeliveryState:
    head = await reading.from_log()
    async with reading.parts.pool.connection() as connection:
        webhook = await delivery_log.find_webhook(connection, reading.organization_id, subscription_id)
        return await delivery_log.state(connection, webhook, head)


@router.get(
    "/deliveries",
    operation_id="event_subscriptions_deliveries",
    response_model=Page[DeliveryShown],
    responses=problems(*QUERY, 409),
    summary="A webhook's deliveries, newest first; kept for 30 days after their end",
)
async def list_deliveries(
    subscription_id: SubscriptionId,
    reading: ReadingOfRequest,
    limit: Limit = 50,
    cursor: CursorParameter = None,
    status: Annotated[
        str | None, Query(max_length=200, description="pending, delivered or failed; several by comma.")
    ] = None,
) -> dict[str, Any]:
    statuses = chosen("status", status, delivery_log.STATUSES)
    await reading.from_log()
    filters = [status or ""]
    place = reading.place(cursor, filters)
    async with reading.parts.pool.connection() as connection:
        webhook = await delivery_log.find_webhook(connection, reading.organization_id, subscription_id)
        found = await delivery_log.page(
            connection, webhook, statuses, None if place is None else str(place[0]), limit + 1
        )
    shown = found[:limit]
    return reading.answer(shown, [shown[-1].id] if len(found) > limit else None, filters)


@router.get(
    "/deliveries/{delivery_id}",
    operation_id="event_subscriptions_delivery",
    response_model=DeliveryDetail,
    responses=problems(*QUERY, 409),
    summary="One delivery with its attempts and what the receiver answered",
)
async def get_delivery(
    subscription_id: SubscriptionId, delivery_id: DeliveryId, reading: ReadingOfRequest
) -> DeliveryDetail:
    await reading.from_log()
    async with reading.parts.pool.connection() as connection:
        webhook = await delivery_log.find_webhook(connection, reading.organization_id, subscription_id)
        return await delivery_log.find(connection, webhook, delivery_id)


@router.post(
    "/deliveries/{delivery_id}/redeliver",
    dependencies=[_ADMINISTER],
    operation_id="event_subscriptions_redeliver_one",
    status_code=202,
    response_model=DeliveryAsked,
    responses=problems(*COMMAND),
    summary="Deliver one event once more, now; its webhook-id stays the same",
)
async def redeliver_one(
    subscription_id: SubscriptionId, delivery_id: DeliveryId, asking: AskingOfRequest
) -> dict[str, Any]:
    # Not an event: it changes no fact. Asked for twice it is due now all the same.
    async with asking.parts.pool.connection() as connection:
        webhook = await _webhook(connection, asking, subscription_id)
        await delivery_log.redeliver(connection, webhook, delivery_id)
        found = await delivery_log.find(connection, webhook, delivery_id)
    return {**dict(found), "command_id": asking.command_id}


@router.post(
    "/redeliver",
    dependencies=[_ADMINISTER],
    operation_id="event_subscriptions_redeliver",
    status_code=202,
    response_model=RedeliveryAsked,
    responses=problems(*COMMAND),
    summary="Deliver again what the subscription wants of a stretch of the log",
)
async def redeliver(
    subscription_id: SubscriptionId, body: RedeliverBody, asking: AskingOfRequest
) -> dict[str, Any]:
    head = await asking.parts.reader.head()
    last = head if body.until_position is None else min(body.until_position, head)
    if body.from_position > head:
        raise BadPosition(f"from_position {body.from_position} is beyond the log's end {head}")
    if body.until_position is not None and body.until_position < body.from_position:
        raise Invalid.field(
            "/until_position",
            "invalid_request",
            f"until_position {body.until_position} is before from_position {body.from_position}; swap them",
        )
    async with asking.parts.pool.connection() as connection:
        webhook = await _webhook(connection, asking, subscription_id)
        asked = await delivery_log.redeliver_from(
            connection,
            webhook,
            body.from_position,
            last,
            requested_by=asking.caller.user_id,
            request_id=asking.command_id,
        )
    asking.response.headers["Location"] = f"/api/v1/event-subscriptions/{subscription_id}/delivery-state"
    return {**dict(asked), "command_id": asking.command_id}


@router.post(
    "/test",
    dependencies=[_ADMINISTER],
    operation_id="event_subscriptions_test",
    status_code=202,
    response_model=DeliveryAsked,
    responses=problems(*COMMAND),
    summary="Send one event that says it is a test, also while the webhook rests; it is not repeated",
)
async def test(subscription_id: SubscriptionId, asking: AskingOfRequest) -> dict[str, Any]:
    async with asking.parts.pool.connection() as connection:
        webhook = await _webhook(connection, asking, subscription_id)
        delivery_id = await delivery_log.test(
            connection,
            webhook,
            asking.parts.log.log_id,
            actor=asking.caller.user_id,
            workspace_id=asking.caller.workspace_id,
            request_id=asking.command_id,
            now=datetime.now(UTC),
        )
        found = await delivery_log.find(connection, webhook, delivery_id)
    asking.response.headers["Location"] = (
        f"/api/v1/event-subscriptions/{subscription_id}/deliveries/{delivery_id}"
    )
    return {**dict(found), "command_id": asking.command_id}


async def _webhook(
    connection: AsyncConnection[Any], asking: Asking, subscription_id: str
) -> delivery_log.Webhook:
    return await delivery_log.find_webhook(connection, asking.caller.organization_id, subscription_id)
