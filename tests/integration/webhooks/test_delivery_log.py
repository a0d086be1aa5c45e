"""Deliveries once more, from a position, tests, and how long it all is kept."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
import pytest
from aiohttp import web
from standardwebhooks import Webhook

from command_api.domain.errors import Conflict, NotFound
from command_api.storage.sweeps import delivery_sweeps
from command_api.webhooks import delivery_log
from command_api.webhooks.ledger import KEPT_ATTEMPTS
from kinora.doctor import insides
from schemas.commands.subscription import DisableSubscription, EnableSubscription
from schemas.ids import Prefix, new_id
from tests.integration.webhooks.conftest import LOCAL, Desk, delivered
from tests.integration.webhooks.receiver import Got, Inbox

T = TypeVar("T")


async def asking(desk: Desk, ask: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]]) -> T:
    async with await psycopg.AsyncConnection.connect(desk.database.conninfo(), autocommit=True) as connection:
        return await ask(connection)


def webhook(desk: Desk, subscription_id: str) -> delivery_log.Webhook:
    return delivery_log.Webhook(desk.organization_id, subscription_id)


async def redelivered(
    desk: Desk, subscription_id: str, first: int, last: int, request_id: str | None = None
) -> delivery_log.RedeliveryShown:
    return await asking(
        desk,
        lambda connection: delivery_log.redeliver_from(
            connection,
            webhook(desk, subscription_id),
            first,
            last,
            requested_by=desk.user_id,
            request_id=request_id or new_id(Prefix.COMMAND),
        ),
    )


def position_of(desk: Desk, event_id: str) -> int:
    return next(raw.position for raw in desk.log.read_all(0, 1000) if raw.event_id == event_id)


async def test_a_stretch_of_history_is_delivered_again_in_its_own_order(desk: Desk, inbox: Inbox) -> None:
    before = await desk.happen(2)  # from before there was a subscription
    subscription_id, _ = await desk.subscribe(inbox.url)
    ids = await desk.happen(4)
    webhooks = await desk.webhooks(LOCAL.model_copy(update={"at_once_each": 1}))
    inbox.answers = [204, 422]
    await delivered(webhooks)
    inbox.got.clear()
    asked = await redelivered(desk, subscription_id, position_of(desk, before[1]), position_of(desk, ids[2]))
    assert asked.finished_at is None
    await delivered(webhooks)
    assert inbox.ids == [before[1], *ids[:3]]
    assert desk.statuses() == ["delivered"] * 5, "an event has one row, however often it goes"
    state = await asking(
        desk, lambda connection: delivery_log.state(connection, webhook(desk, subscription_id), 9)
    )
    (finished,) = state.redeliveries
    assert finished.finished_at is not None
    assert (finished.position, state.pending, state.failures) == (finished.until_position, 0, 0)


async def test_a_redelivery_waits_for_room_and_goes_on(desk: Desk, inbox: Inbox) -> None:
    subscription_id, _ = await desk.subscribe(inbox.url)
    ids = await desk.happen(7)
    webhooks = await desk.webhooks(LOCAL.model_copy(update={"pending_each": 2}))
    await delivered(webhooks)
    inbox.got.clear()
    await redelivered(desk, subscription_id, 0, desk.log.head())
    await webhooks.look()
    (open_,) = desk.rows("redeliveries")
    assert 0 < open_["position"] < open_["until_position"]
    await webhooks.finish()
    await delivered(webhooks)
    assert sorted(inbox.ids) == sorted(ids)


async def test_the_same_request_again_asks_for_no_more(desk: Desk, inbox: Inbox) -> None:
    subscription_id, _ = await desk.subscribe(inbox.url)
    request = new_id(Prefix.COMMAND)
    first = await redelivered(desk, subscription_id, 1, 5, request)
    assert await redelivered(desk, subscription_id, 1, 5, request) == first
    for _ in range(delivery_log.OPEN_REDELIVERIES - 1):
        await redelivered(desk, subscription_id, 1, 5)
    with pytest.raises(Conflict) as caught:
        await redelivered(desk, subscription_id, 1, 5)
    assert caught.value.code == "too_many_redeliveries"


async def test_one_delivery_once_more(desk: Desk, inbox: Inbox) -> None:
    subscription_id, _ = await desk.subscribe(inbox.url)
    (event_id,) = await desk.happen()
    webhooks = await desk.webhooks()
    await delivered(webhooks)
    delivery_id = desk.rows()[0]["delivery_id"]
    mine = webhook(desk, subscription_id)
    await asking(desk, lambda connection: delivery_log.redeliver(connection, mine, delivery_id))
    inbox.answers = [500]
    desk.passed(minutes=1)
    await delivered(webhooks)
    assert inbox.ids == [event_id, event_id]
    found = await asking(desk, lambda connection: delivery_log.find(connection, mine, delivery_id))
    assert [attempt.status for attempt in found.attempts] == [204, 500]
    assert (found.status, found.attempt_count) == ("pending", 2)
    assert found.next_attempt_at is not None
    # Somebody put the receiver right and does not want to wait.
    await asking(desk, lambda connection: delivery_log.redeliver(connection, mine, delivery_id))
    await delivered(webhooks)
    assert inbox.ids == [event_id] * 3
    other = webhook(desk, new_id(Prefix.SUBSCRIPTION))
    with pytest.raises(NotFound):
        await asking(desk, lambda connection: delivery_log.redeliver(connection, other, delivery_id))
    with pytest.raises(NotFound):
        await asking(desk, lambda connection: delivery_log.find(connection, other, delivery_id))


async def test_a_test_goes_out_once_also_while_the_webhook_rests(desk: Desk, inbox: Inbox) -> None:
    subscription_id, secret = await desk.subscribe(inbox.url)
    await desk.ask(DisableSubscription(subscription_id=subscription_id, reason="requested"))
    await desk.happen()
    webhooks = await desk.webhooks()
    await delivered(webhooks)
    request = new_id(Prefix.COMMAND)

    async def tested() -> str:
        return await asking(
            desk,
            lambda connection: delivery_log.test(
                connection,
                webhook(desk, subscription_id),
                desk.log.log_id,
                actor=desk.user_id,
                workspace_id=desk.workspace_id,
                request_id=request,
                now=desk.now,
            ),
        )

    assert await tested() == await tested()
    inbox.answers = [500]
    await delivered(webhooks)
    (got,) = inbox.got
    event = Webhook(secret).verify(got.body, got.headers)
    assert (event["type"], event["subject"]) == ("kinora.subscription.test.v1", subscription_id)
    assert (event["id"], "position" in event) == (got.id, False)
    assert desk.statuses() == ["failed"], "a test is not repeated"
    assert desk.rows("places")[0]["failures"] == 0, "and says nothing of the receiver's health"
    await desk.ask(EnableSubscription(subscription_id=subscription_id))
    await delivered(webhooks)
    assert len(inbox.got) == 2


async def test_pages_newest_first_of_one_status(desk: Desk, inbox: Inbox) -> None:
    subscription_id, _ = await desk.subscribe(inbox.url)
    await desk.happen(5)
    inbox.answers = [500, 204, 500]
    await delivered(await desk.webhooks(LOCAL.model_copy(update={"at_once_each": 1})))
    mine = webhook(desk, subscription_id)
    positions = [row["position"] for row in desk.rows()]
    found: list[int] = []
    before: str | None = None
    while page := await asking(
        desk, lambda connection, at=before: delivery_log.page(connection, mine, None, at, 2)
    ):
        found += [each.position or 0 for each in page]
        before = page[-1].id
    assert found == positions[::-1]
    waiting = await asking(
        desk, lambda connection: delivery_log.page(connection, mine, ["pending", "failed"], None, 9)
    )
    assert [(each.position, each.status) for each in waiting] == [
        (positions[2], "pending"),
        (positions[0], "pending"),
    ]
    last = waiting[0].last_attempt
    assert last is not None
    assert last.status == 500


async def test_outcomes_are_kept_for_their_time_and_attempts_in_bounds(desk: Desk, inbox: Inbox) -> None:
    subscription_id, _ = await desk.subscribe(inbox.url)
    await desk.happen(3)
    inbox.answers = [204, 204, 500]
    webhooks = await desk.webhooks()
    await delivered(webhooks)
    mine = webhook(desk, subscription_id)
    done, _, waiting = sorted(
        (row["delivery_id"] for row in desk.rows()),
        key=lambda delivery_id: [row["status"] for row in desk.rows() if row["delivery_id"] == delivery_id],
    )
    desk.passed(hours=1)
    for _ in range(KEPT_ATTEMPTS + 3):
        await asking(desk, lambda connection: delivery_log.redeliver(connection, mine, waiting))
        inbox.answers = [500]
        await delivered(webhooks)
    found = await asking(desk, lambda connection: delivery_log.find(connection, mine, waiting))
    assert len(found.attempts) == KEPT_ATTEMPTS
    desk.execute(
        "UPDATE kinora_webhook_deliveries SET created_at = created_at - interval '31 days',"
        " finished_at = finished_at - CASE WHEN delivery_id = %s THEN interval '31 days' ELSE '1 day' END",
        done,
    )
    deliveries, _ = delivery_sweeps(desk.database.conninfo(), 30)
    assert (await deliveries.count(), await deliveries.sweep()) == (1, 1)
    left = desk.rows()
    assert done not in {row["delivery_id"] for row in left}
    assert sorted(row["status"] for row in left) == ["delivered", "pending"]


async def test_the_doctor_names_receivers_that_take_nothing(desk: Desk, inbox: Inbox) -> None:
    subscription_id, _ = await desk.subscribe(inbox.url)
    await desk.subscribe(f"{inbox.url}/well")
    await desk.happen(2)

    async def by_path(got: Got) -> web.StreamResponse:
        return web.Response(status=204 if got.path.endswith("well") else 503)

    inbox.answering = by_path
    webhooks = await desk.webhooks()
    await delivered(webhooks)
    (failing,) = await asking(desk, delivery_log.failing_webhooks)
    assert (failing.subscription_id, failing.failures, failing.pending) == (subscription_id, 2, 2)
    finding = insides._failing(failing)
    assert finding.verdict == "warning"
    assert f"{desk.now:%Y-%m-%d %H:%M} UTC, in 2 attempts; 2 deliveries wait" in finding.detail
    assert "status 503" in finding.detail
    await desk.ask(DisableSubscription(subscription_id=subscription_id, reason="requested"))
    await delivered(webhooks)
    assert await asking(desk, delivery_log.failing_webhooks) == []
