"""Subscriptions of third parties to the organization's events: a NATS consumer, or a webhook."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from command_api.credentials.subscriptions import SubscriptionGoneRow
from command_api.domain.errors import Conflict, Invalid, NotFound
from command_api.domain.webhook_addresses import check_url
from command_api.feed.known import is_stream, is_workspace
from command_api.problems import BadPosition
from command_api.routes.calling import ClosedRoute, needs
from command_api.routes.commanding import Asking, AskingOfRequest
from command_api.routes.parts import Parts
from command_api.routes.problem_docs import COMMAND, QUERY, problems
from command_api.routes.reading import (
    CursorParameter,
    Limit,
    MinPosition,
    Page,
    Reading,
    ReadingOfRequest,
    chosen,
)
from command_api.routes.showing import show
from command_api.subscriptions.issuing import connection
from command_api.webhooks.target import check_target
from projections.views import subscriptions as view
from projections.views.subscriptions import Subscriptions, SubscriptionView
from schemas.commands import Command
from schemas.commands.subscription import DeleteSubscription, DisableSubscription, EnableSubscription
from schemas.ids import SubscriptionId
from schemas.subjects import EVENTS_STREAM, subscriber_durable
from schemas.subscriptions import (
    CreateSubscriptionBody,
    CredentialsBody,
    DisableSubscriptionBody,
    NatsConnection,
    NatsCredentials,
    RotateSecretBody,
    SubscriptionStatus,
)

router = APIRouter(
    prefix="/event-subscriptions",
    tags=["event subscriptions"],
    dependencies=[needs("events:subscribe")],
    route_class=ClosedRoute,
)
_ADMINISTER = needs("org:admin")
"""Whoever makes a subscription hands the organization's events to somebody outside."""

_VIEW = Subscriptions()
_STATUSES: tuple[SubscriptionStatus, ...] = ("active", "disabled")


class SubscriptionShown(SubscriptionView):
    """A subscription as people see it."""

    connection: NatsConnection | None = None
    """Where a NATS subscriber reads."""


class SubscriberReading(BaseModel):
    """How far a NATS subscriber has read."""

    acknowledged: int
    """It has acknowledged everything up to this position; noted every few seconds."""
    pending: int
    """Events that it has not been given yet."""
    unacknowledged: int
    """Events that it was given and has not acknowledged."""
    waiting: int
    """Requests for events that are open right now: 0 when nobody reads."""


class SubscriptionRead(SubscriptionShown):
    """A subscription, and how far its subscriber is."""

    reading: SubscriberReading | None = None
    """Of kind nats; None while there is no consumer, which the orchestrator makes, or NATS is away."""


class StreamCursor(BaseModel):
    """Where a position lies in the stream."""

    position: int
    stream: str
    sequence: int
    """Of the first message behind the position; it may not be there yet."""
    epoch: int
    """Of the filling of the stream that the sequence belongs to."""


class SubscriptionCommanded(SubscriptionShown):
    """A subscription after a command."""

    command_id: str


class SubscriptionMade(SubscriptionCommanded):
    """A new subscription, and the secret that is shown this once."""

    credentials: NatsCredentials | None = None
    """Of kind nats."""
    signing_secret: str | None = Field(None, repr=False)
    """Of kind webhook: what the receiver checks signatures with, as Standard Webhooks has it."""


class CredentialsIssued(NatsCredentials):
    """New credentials, and where they hold."""

    connection: NatsConnection
    command_id: str


class SecretRotated(SubscriptionCommanded):
    """A webhook with its new secret."""

    signing_secret: str = Field(repr=False)


def _shown(parts: Parts, found: SubscriptionView) -> dict[str, Any]:
    where = None
    if found.kind == "nats":
        where = connection(parts.settings.nats, found.organization_id, found.id, found.filter)
    return {**dict(found), "connection": where}


async def _commanded(asking: Asking, subscription_id: str) -> dict[str, Any]:
    found = await show(asking.parts, _VIEW, subscription_id)
    return {**_shown(asking.parts, found), "command_id": asking.command_id}


@router.post(
    "",
    dependencies=[_ADMINISTER],
    operation_id="event_subscriptions_create",
    status_code=201,
    response_model=SubscriptionMade,
    responses=problems(*COMMAND),
    summary="Let a third party have the organization's events; its secret is shown this once",
    openapi_extra={"x-emits": ["kinora.subscription.created", "kinora.subscription.credentials_issued"]},
)
async def create(body: CreateSubscriptionBody, asking: AskingOfRequest) -> dict[str, Any]:
    parts = asking.parts
    if body.url is not None:
        check_url(body.url)
        check_target(body.url, parts.settings.webhooks)
    context = asking.context(body)
    await _check_filter(parts, context.organization_id or "", body)
    after = await _after(parts, body)
    made = await parts.subscriptions.create(body, after, context)
    asking.mark(made.outcome)
    asking.response.headers["Location"] = f"/api/v1/event-subscriptions/{made.subscription_id}"
    found = await show(parts, _VIEW, made.subscription_id, made.outcome)
    return {
        **_shown(parts, found),
        "command_id": asking.command_id,
        "credentials": made.credentials,
        "signing_secret": made.signing_secret,
    }


async def _check_filter(parts: Parts, organization_id: str, body: CreateSubscriptionBody) -> None:
    """Refuse what would never deliver anything.

    Raises:
        Invalid: the organization has no such stream or workspace.
    """
    stream_id = body.filter.stream_id if body.kind == "webhook" else None  # NATS has no such filter at all
    if stream_id is not None and not await is_stream(parts.reader, organization_id, stream_id):
        raise _unknown("/filter/stream_id", stream_id)
    workspace_id = body.filter.workspace_id
    if workspace_id is not None and not await is_workspace(parts.reader, organization_id, workspace_id):
        raise _unknown("/filter/workspace_id", workspace_id)


def _unknown(pointer: str, value: str) -> Invalid:
    message = f"{value} does not exist; check the id, and the organization that you are in"
    return Invalid.field(pointer, "unknown_value", message)


async def _after(parts: Parts, body: CreateSubscriptionBody) -> int:
    """The position behind which delivery begins.

    Raises:
        BadPosition: when the log has no such position.
    """
    if body.start == "earliest":
        return 0
    head = await parts.reader.head()
    if body.start == "latest":
        return head
    if body.start > head:
        raise BadPosition(
            f"start {body.start} is beyond the log's end {head}; use latest for what comes next"
        )
    return body.start


@router.get(
    "",
    operation_id="event_subscriptions_list",
    response_model=Page[SubscriptionView],
    responses=problems(*QUERY),
    summary="List subscriptions, newest first",
)
async def list_subscriptions(
    reading: ReadingOfRequest,
    limit: Limit = 50,
    cursor: CursorParameter = None,
    status: Annotated[str | None, Query(max_length=200, description="active or disabled.")] = None,
    min_position: MinPosition = None,
) -> Response:
    statuses = chosen("status", status, _STATUSES)
    await reading.fresh("subscriptions", min_position)

    async def rows(count: int, after: Any) -> Any:
        async with reading.parts.pool.connection() as database:
            return await view.page(
                database, reading.organization_id, limit=count, after=after, statuses=statuses
            )

    return await reading.stored_page(rows, limit=limit, cursor=cursor, filters=[status or ""])


@router.get(
    "/{subscription_id}",
    operation_id="event_subscriptions_get",
    response_model=SubscriptionRead,
    responses=problems(*QUERY),
    summary="Show a subscription, where its subscriber reads, and how far it is",
)
async def get(
    subscription_id: SubscriptionId, reading: ReadingOfRequest, min_position: MinPosition = None
) -> Any:
    found = await _found(subscription_id, reading, min_position)
    return {**_shown(reading.parts, found), "reading": await _read(reading.parts, found)}


async def _found(subscription_id: str, reading: Reading, min_position: int | None = None) -> SubscriptionView:
    await reading.fresh("subscriptions", min_position)
    async with reading.parts.pool.connection() as database:
        found = await view.get(database, reading.organization_id, subscription_id)
    if found is None:
        raise NotFound(f"subscription {subscription_id} does not exist")
    return found


async def _read(parts: Parts, found: SubscriptionView) -> SubscriberReading | None:
    if found.kind != "nats":
        return None
    standing = await parts.events_stream.standing(subscriber_durable(found.organization_id, found.id))
    if standing is None:
        return None
    async with parts.pool.connection() as database:
        cursor = await database.execute(
            "SELECT position FROM kinora_subscriber_cursors WHERE subscription_id = %s", (found.id,)
        )
        row = await cursor.fetchone()
    acknowledged = found.after if row is None else int(row[0])
    return SubscriberReading(
        acknowledged=acknowledged,
        pending=standing.pending,
        unacknowledged=standing.unacknowledged,
        waiting=standing.waiting,
    )


@router.get(
    "/{subscription_id}/cursor",
    operation_id="event_subscriptions_cursor",
    response_model=StreamCursor,
    responses=problems(*QUERY, 409),
    summary="The stream sequence that stands behind a position",
)
async def cursor_of(
    subscription_id: SubscriptionId,
    reading: ReadingOfRequest,
    position: Annotated[
        int | None, Query(ge=0, le=2**62, description="A position of the log; its end when left out.")
    ] = None,
) -> StreamCursor:
    found = await _found(subscription_id, reading)
    if found.kind != "nats":
        raise Conflict(
            f"subscription {subscription_id} is a webhook, and reads no stream; positions are all it needs",
            code="subscription_of_other_kind",
        )
    head = await reading.from_log()
    position = head if position is None else position
    if position > head:
        raise BadPosition(f"position {position} is beyond the log's end {head}")
    place = await reading.parts.events_stream.place(position)
    return StreamCursor(position=position, stream=EVENTS_STREAM, sequence=place.sequence, epoch=place.epoch)


@router.post(
    "/{subscription_id}/credentials",
    dependencies=[_ADMINISTER],
    operation_id="event_subscriptions_credentials",
    status_code=201,
    response_model=CredentialsIssued,
    responses=problems(*COMMAND),
    summary="New NATS credentials, shown this once; those before are void unless they are kept",
    openapi_extra={"x-emits": ["kinora.subscription.credentials_issued"]},
)
async def credentials(
    subscription_id: SubscriptionId, asking: AskingOfRequest, body: CredentialsBody | None = None
) -> dict[str, Any]:
    asked, parts = body or CredentialsBody(), asking.parts
    issued, outcome = await parts.subscriptions.issue(subscription_id, asked, asking.context(asked))
    asking.mark(outcome)
    found = await show(parts, _VIEW, subscription_id)
    where = connection(parts.settings.nats, found.organization_id, found.id, found.filter)
    return {**dict(issued), "connection": where, "command_id": asking.command_id}


@router.post(
    "/{subscription_id}/rotate-secret",
    dependencies=[_ADMINISTER],
    operation_id="event_subscriptions_rotate_secret",
    status_code=201,
    response_model=SecretRotated,
    responses=problems(*COMMAND),
    summary="A new signing secret for a webhook, shown this once; the former one signs on for a while",
    openapi_extra={"x-emits": ["kinora.subscription.secret_rotated"]},
)
async def rotate_secret(
    subscription_id: SubscriptionId, asking: AskingOfRequest, body: RotateSecretBody | None = None
) -> dict[str, Any]:
    asked = body or RotateSecretBody()
    secret, outcome = await asking.parts.subscriptions.rotate(subscription_id, asked, asking.context(asked))
    asking.mark(outcome)
    return {**await _commanded(asking, subscription_id), "signing_secret": secret}


@router.post(
    "/{subscription_id}/disable",
    dependencies=[_ADMINISTER],
    operation_id="event_subscriptions_disable",
    status_code=202,
    response_model=SubscriptionCommanded,
    responses=problems(*COMMAND),
    summary="Let a webhook rest; nothing is lost, it goes on where it stopped",
    openapi_extra={"x-emits": ["kinora.subscription.disabled"]},
)
async def disable(
    subscription_id: SubscriptionId, asking: AskingOfRequest, body: DisableSubscriptionBody | None = None
) -> dict[str, Any]:
    asked = body or DisableSubscriptionBody()
    command: Command = DisableSubscription(
        subscription_id=subscription_id, reason="requested", detail=asked.reason
    )
    await asking.execute(command, asked)
    return await _commanded(asking, subscription_id)


@router.post(
    "/{subscription_id}/enable",
    dependencies=[_ADMINISTER],
    operation_id="event_subscriptions_enable",
    status_code=202,
    response_model=SubscriptionCommanded,
    responses=problems(*COMMAND),
    summary="Let a webhook go on where it stopped",
    openapi_extra={"x-emits": ["kinora.subscription.enabled"]},
)
async def enable(subscription_id: SubscriptionId, asking: AskingOfRequest) -> dict[str, Any]:
    await asking.execute(EnableSubscription(subscription_id=subscription_id))
    return await _commanded(asking, subscription_id)


@router.delete(
    "/{subscription_id}",
    dependencies=[_ADMINISTER],
    operation_id="event_subscriptions_delete",
    status_code=204,
    responses=problems(*COMMAND),
    summary="End a subscription for good; its credentials are void at once",
    openapi_extra={"x-emits": ["kinora.subscription.deleted"]},
)
async def delete(subscription_id: SubscriptionId, asking: AskingOfRequest) -> Response:
    command = DeleteSubscription(subscription_id=subscription_id)
    await asking.execute(command, rows=(SubscriptionGoneRow(subscription_id),))
    return asking.no_content()
