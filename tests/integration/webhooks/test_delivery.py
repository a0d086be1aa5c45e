"""What receivers get, when, and what the delivery log says of it; the receivers are real, time is given."""

import asyncio
import logging
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import psycopg
import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from command_api.settings import WebhookSettings
from command_api.webhooks.schedule import Answer
from command_api.webhooks.sender import KEPT_BYTES
from schemas.commands.agent import RevokeAgent
from schemas.commands.subscription import DeleteSubscription, DisableSubscription, EnableSubscription
from schemas.envelope import public_bytes
from schemas.ids import Prefix, new_id
from schemas.subscriptions import EventFilter
from tests.integration.webhooks.conftest import LOCAL, Desk, delivered
from tests.integration.webhooks.receiver import Got, Inbox, listening, until

QUICK = WebhookSettings(allowed_networks=("127.0.0.0/8",), timeout_seconds=0.2)


async def test_the_stored_bytes_arrive_signed(desk: Desk, inbox: Inbox) -> None:
    _, secret = await desk.subscribe(inbox.url)
    (event_id,) = await desk.happen()
    assert await delivered(await desk.webhooks()) == 1
    (got,) = inbox.got
    raw = desk.log.read_all(desk.log.head() - 1, 1)[0]
    assert got.body == public_bytes(raw.position, desk.log.log_id, raw.state)
    assert got.id == event_id == got.event["id"]
    assert got.headers["content-type"] == "application/cloudevents+json"
    assert Webhook(secret).verify(got.body, got.headers)["subject"] == raw.stream_id
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(got.body.replace(b"node", b"n0de"), got.headers)
    (row,) = desk.rows()
    assert (row["status"], row["tries"], row["attempts"][0]["status"]) == ("delivered", 1, 204)


async def test_only_what_was_asked_for_of_one_s_own_organization_from_then_on(
    desk: Desk, inbox: Inbox
) -> None:
    await desk.happen()
    other = new_id(Prefix.ORGANIZATION)
    await desk.subscribe(inbox.url, EventFilter(types=("kinora.agent.enrolled",)))
    await desk.subscribe(f"{inbox.url}/all", EventFilter())
    await desk.happen(1, other)
    wanted = await desk.happen(2)
    agent_id = desk.log.read_all(desk.log.head() - 1, 1)[0].stream_id
    await desk.ask(RevokeAgent(agent_id=agent_id))
    await desk.subscribe(f"{inbox.url}/one", EventFilter(stream_id=agent_id), after=0)
    await delivered(await desk.webhooks())
    by_path: dict[str, list[str]] = {}
    for got in inbox.got:
        by_path.setdefault(got.path, []).append(got.event["type"])
    assert sorted(got.id for got in inbox.got if got.path == "/kinora") == sorted(wanted)
    assert by_path["/kinora/one"] == ["kinora.agent.enrolled.v1", "kinora.agent.revoked.v1"]
    assert {"kinora.subscription.created.v1", "kinora.agent.revoked.v1"} <= set(by_path["/kinora/all"])
    assert {got.event["organization"] for got in inbox.got} == {desk.organization_id}


async def test_failures_are_repeated_by_the_schedule_and_hold_nothing_up(desk: Desk, inbox: Inbox) -> None:
    await desk.subscribe(inbox.url)
    (bad,) = await desk.happen()
    inbox.answers = [500, 503]
    webhooks = await desk.webhooks()
    assert await delivered(webhooks) == 1
    desk.passed(seconds=4.9)
    assert await delivered(webhooks) == 0
    (good,) = await desk.happen()
    inbox.answers = [204, 503]
    assert await delivered(webhooks) == 1
    desk.passed(seconds=0.2)
    inbox.answers = [503]
    assert await delivered(webhooks) == 1
    desk.passed(minutes=4, seconds=59)
    assert await delivered(webhooks) == 0
    desk.passed(seconds=2)
    assert await delivered(webhooks) == 1
    assert inbox.ids == [bad, good, bad, bad]
    failed, _ = desk.rows()
    assert (failed["status"], failed["tries"]) == ("delivered", 3)
    assert [attempt["status"] for attempt in failed["attempts"]] == [500, 503, 204]
    timestamps = [int(got.headers["webhook-timestamp"]) for got in inbox.got if got.id == bad]
    assert timestamps == sorted(set(timestamps)), "every attempt is signed anew"


async def test_the_receiver_says_when_to_come_back(desk: Desk, inbox: Inbox) -> None:
    await desk.subscribe(inbox.url)
    await desk.happen()
    webhooks = await desk.webhooks()
    date = format_datetime(desk.now + timedelta(hours=3), usegmt=True)
    inbox.answers = [
        web.Response(status=429, headers={"Retry-After": "600"}),
        web.Response(status=503, headers={"Retry-After": date}),
    ]
    assert await delivered(webhooks) == 1
    desk.passed(seconds=599)
    assert await delivered(webhooks) == 0
    desk.passed(seconds=2)
    assert await delivered(webhooks) == 1
    desk.passed(hours=2, minutes=49)
    assert await delivered(webhooks) == 0
    desk.passed(minutes=1)
    assert await delivered(webhooks) == 1


async def test_gone_disables_the_subscription_until_somebody_enables_it(desk: Desk, inbox: Inbox) -> None:
    subscription_id, _ = await desk.subscribe(inbox.url)
    refused = await desk.happen()
    inbox.answers = [410]
    webhooks = await desk.webhooks()
    await delivered(webhooks)
    assert desk.statuses() == ["failed"]
    (disabled,) = desk.log.read_stream(subscription_id, 1)
    assert (disabled.event.TYPE, disabled.event.reason) == ("kinora.subscription.disabled", "gone")  # type: ignore[attr-defined]
    assert disabled.metadata.actor == "system:webhooks"
    later = await desk.happen(2)
    await delivered(webhooks)
    assert inbox.ids == refused
    await desk.ask(EnableSubscription(subscription_id=subscription_id))
    await delivered(webhooks)
    assert sorted(inbox.ids[1:]) == sorted(later), "nothing that came meanwhile is lost"


async def test_three_days_without_a_success_disable_it(desk: Desk, inbox: Inbox) -> None:
    subscription_id, _ = await desk.subscribe(inbox.url)
    await desk.happen()

    async def refuse(got: Got) -> web.StreamResponse:
        return web.Response(status=500)

    inbox.answering = refuse
    webhooks = await desk.webhooks()
    while "pending" in desk.statuses() or not desk.rows():
        await delivered(webhooks)
        desk.now = max(desk.now, desk.rows()[0]["due_at"])
    (row,) = desk.rows()
    assert (row["status"], row["tries"], len(inbox.got)) == ("failed", 10, 10)
    assert row["finished_at"] - row["created_at"] == timedelta(days=3)
    await delivered(webhooks)
    assert desk.log.read_stream(subscription_id, 1)[0].event.reason == "failing"  # type: ignore[attr-defined]
    inbox.answering = None
    await desk.ask(EnableSubscription(subscription_id=subscription_id))
    (later,) = await desk.happen()
    await delivered(webhooks)
    assert inbox.ids[-1] == later
    assert desk.rows("places")[0]["failing_since"] is None


async def test_a_receiver_that_comes_back_gets_at_once_what_waited(desk: Desk, inbox: Inbox) -> None:
    await desk.subscribe(inbox.url)
    missed = await desk.happen(6)
    webhooks = await desk.webhooks()
    inbox.answers = [500] * 12
    await delivered(webhooks)
    desk.passed(seconds=6)
    await delivered(webhooks)
    assert len(inbox.got) == 12
    desk.passed(minutes=1)  # before any of them is due
    (fresh,) = await desk.happen()
    await delivered(webhooks)
    assert inbox.ids[12] == fresh
    assert sorted(inbox.ids[13:]) == sorted(missed)


async def test_what_the_receiver_alone_refuses_waits_for_its_own_turn(desk: Desk, inbox: Inbox) -> None:
    await desk.subscribe(inbox.url)
    await desk.happen(6)
    webhooks = await desk.webhooks()
    inbox.answers = [422] * 6
    await delivered(webhooks)
    await desk.happen()
    await delivered(webhooks)
    assert len(inbox.got) == 7


async def test_a_receiver_that_is_too_slow_has_not_taken_it(desk: Desk, inbox: Inbox) -> None:
    async def stall(got: Got) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    await desk.subscribe(inbox.url)
    await desk.happen()
    inbox.answering = stall
    await delivered(await desk.webhooks(QUICK))
    (row,) = desk.rows()
    assert (row["status"], row["attempts"][0]["error"]) == ("pending", "timeout")


async def test_a_body_that_never_ends_is_cut_and_only_its_beginning_is_kept(desk: Desk, inbox: Inbox) -> None:
    inbox.answers = [web.Response(status=500, body=b"no\0" + b"x" * 2**20)]
    await desk.subscribe(inbox.url)
    await desk.happen()
    await delivered(await desk.webhooks())
    told = desk.rows()[0]["attempts"][0]["answer"]
    assert told.startswith("no\ufffdxxx")
    assert len(told) == KEPT_BYTES


async def test_a_redirect_is_a_failure_and_is_not_followed(desk: Desk, inbox: Inbox) -> None:
    async with listening() as elsewhere:
        inbox.answers = [web.Response(status=307, headers={"Location": elsewhere.url})]
        await desk.subscribe(inbox.url)
        await desk.happen()
        await delivered(await desk.webhooks())
        assert elsewhere.got == []
    (row,) = desk.rows()
    assert (row["status"], row["attempts"][0]["status"]) == ("pending", 307)


@pytest.mark.parametrize(
    ("url", "settings", "error"),
    [
        ("http://localhost:{port}/", WebhookSettings(), "address_refused"),
        ("https://localhost:{port}/", WebhookSettings(), "address_refused"),
        ("http://localhost:{port}/", WebhookSettings(allowed_networks=("10.0.0.0/8",)), "address_refused"),
        ("https://localhost:{port}/", LOCAL, "unreachable"),  # it speaks no TLS
        ("https://hooks.invalid/", LOCAL, "host_unknown"),
    ],
)
async def test_what_a_name_leads_to_is_judged_when_it_is_connected_to(
    desk: Desk, inbox: Inbox, url: str, settings: WebhookSettings, error: str
) -> None:
    port = inbox.url.split(":")[2].split("/")[0]
    await desk.subscribe(url.format(port=port))
    await desk.happen()
    await delivered(await desk.webhooks(settings))
    (row,) = desk.rows()
    assert (row["status"], row["attempts"][0]["error"]) == ("pending", error)
    assert inbox.got == []
    assert "127.0.0.1" not in str(row["attempts"])


async def test_public_addresses_are_not_spoken_to_in_the_clear(desk: Desk, monkeypatch: Any) -> None:
    """An allowed network is where http may be; a name that leads out of it is not reached by it."""
    resolve = asyncio.get_running_loop().getaddrinfo

    async def public(host: str, port: int, **named: Any) -> Any:
        return await resolve("93.184.215.14", port, **named)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", public)
    await desk.subscribe("http://localhost:8000/")
    await desk.happen()
    await delivered(await desk.webhooks())
    assert desk.rows()[0]["attempts"][0]["error"] == "address_refused"


async def test_one_stream_in_order_others_beside_within_bounds(desk: Desk, inbox: Inbox) -> None:
    going = asyncio.Event()

    async def hold(got: Got) -> web.StreamResponse:
        await going.wait()
        return web.Response()

    await desk.subscribe(inbox.url)
    first = (await desk.happen())[0]
    agent_id = desk.log.read_all(desk.log.head() - 1, 1)[0].stream_id
    await desk.ask(RevokeAgent(agent_id=agent_id))
    await desk.happen(5)
    inbox.answering = hold
    webhooks = await desk.webhooks()
    assert await webhooks.look() == 4
    await until(lambda: inbox.busy == 4)
    assert await webhooks.look() == 0, "four at a time for one receiver"
    going.set()
    await webhooks.finish()
    await delivered(webhooks)
    assert inbox.busiest == 4
    of_agent = [got.event["type"] for got in inbox.got if got.event["subject"] == agent_id]
    assert of_agent == ["kinora.agent.enrolled.v1", "kinora.agent.revoked.v1"]
    assert inbox.ids[0] == first
    assert len(inbox.ids) == len(set(inbox.ids)) == 7


async def test_one_receiver_that_stalls_delays_nobody_else(desk: Desk, inbox: Inbox) -> None:
    async def stall(got: Got) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    async with listening() as stalled:
        stalled.answering = stall
        await desk.subscribe(stalled.url)
        await desk.subscribe(inbox.url)
        wanted = await desk.happen(8)
        webhooks = await desk.webhooks(QUICK)
        async with asyncio.timeout(10):
            while len(inbox.got) < len(wanted):
                await webhooks.look()
                await asyncio.sleep(0.005)
        assert sorted(inbox.ids) == sorted(wanted)
        await webhooks.finish()


async def test_a_crash_between_answer_and_commit_sends_it_again_under_the_same_id(
    desk: Desk, inbox: Inbox
) -> None:
    await desk.subscribe(inbox.url)
    (event_id,) = await desk.happen()
    arrived = asyncio.Event()

    async def never_answered(got: Got) -> web.StreamResponse:
        arrived.set()
        await asyncio.sleep(60)
        return web.Response()

    inbox.answering = never_answered
    killed = await desk.webhooks()
    await killed.look()
    await arrived.wait()
    for task in list(killed._tasks):
        task.cancel()
    inbox.answering = None
    assert await delivered(await desk.webhooks()) == 1
    assert inbox.ids == [event_id, event_id]
    assert desk.statuses() == ["delivered"]


async def test_killed_amid_many_deliveries_it_loses_none(desk: Desk, inbox: Inbox) -> None:
    """What was answered and what was not, what is under way and what waits: the next one sends all of it."""
    await desk.subscribe(inbox.url)
    wanted = await desk.happen(12)
    answered = 0

    async def every_other(got: Got) -> web.StreamResponse:
        nonlocal answered
        if inbox.got.index(got) % 2:
            await asyncio.sleep(60)
        answered += 1
        return web.Response()

    inbox.answering = every_other
    killed = await desk.webhooks()
    started = await killed.look()
    await until(lambda: answered > 0 and inbox.busy > 0 and len(inbox.got) == started)
    for task in list(killed._tasks):
        task.cancel()
    inbox.answering = None
    await delivered(await desk.webhooks())
    assert set(inbox.ids) == set(wanted)
    assert desk.statuses() == ["delivered"] * 12


async def test_a_database_that_is_away_when_the_answer_came_costs_a_repetition_only(
    desk: Desk, inbox: Inbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("command_api.webhooks.delivery.RETRY_SECONDS", 0.01)
    await desk.subscribe(inbox.url)
    (event_id,) = await desk.happen()

    async def cut(got: Got) -> web.StreamResponse:
        with psycopg.connect(desk.database.conninfo(), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        return web.Response()

    inbox.answering = cut
    webhooks = await desk.webhooks()
    with caplog.at_level(logging.WARNING):
        await webhooks.look()
        await webhooks.finish()
    inbox.answering = None
    await delivered(webhooks)
    assert set(inbox.ids) == {event_id}
    assert len(inbox.ids) in (1, 2)
    assert desk.statuses() == ["delivered"]


async def test_both_secrets_sign_while_one_replaces_the_other(desk: Desk, inbox: Inbox) -> None:
    subscription_id, former = await desk.subscribe(inbox.url)
    fresh = await desk.rotate(subscription_id, desk.now + timedelta(minutes=3))
    webhooks = await desk.webhooks()
    await desk.happen()
    await delivered(webhooks)
    desk.passed(minutes=4)
    await desk.happen()
    await delivered(webhooks)
    both, one = inbox.got
    for secret in (former, fresh):
        Webhook(secret).verify(both.body, both.headers)
    Webhook(fresh).verify(one.body, one.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(former).verify(one.body, one.headers)


async def test_a_backlog_stays_in_the_log_until_there_is_room(desk: Desk, inbox: Inbox) -> None:
    few = LOCAL.model_copy(update={"pending_each": 3})
    await desk.subscribe(inbox.url)
    wanted = await desk.happen(8)
    inbox.answers = [422] * 3
    webhooks = await desk.webhooks(few)
    await delivered(webhooks)
    assert len(desk.rows()) == 3
    desk.passed(seconds=6)
    await delivered(webhooks)
    assert sorted(set(inbox.ids)) == sorted(wanted)
    assert desk.statuses() == ["delivered"] * 8
    assert desk.rows("places")[0]["position"] == desk.log.head()


async def test_a_rest_sends_nothing_and_the_end_forgets_everything(desk: Desk, inbox: Inbox) -> None:
    subscription_id, _ = await desk.subscribe(inbox.url)
    webhooks = await desk.webhooks()
    await desk.ask(DisableSubscription(subscription_id=subscription_id, reason="requested"))
    await desk.happen(2)
    await delivered(webhooks)
    assert inbox.got == []
    await desk.ask(EnableSubscription(subscription_id=subscription_id))
    await delivered(webhooks)
    assert len(inbox.got) == 2
    await desk.ask(DeleteSubscription(subscription_id=subscription_id))
    await desk.happen()
    await delivered(webhooks)
    assert len(inbox.got) == 2
    assert desk.rows() == desk.rows("places") == []


async def test_a_restored_log_is_not_sent_again(
    desk: Desk, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    """The rows came back with the backup, under a log that has another name now."""
    await desk.subscribe(inbox.url)
    await desk.happen(2)
    inbox.answers = [204, 500]
    webhooks = await desk.webhooks()
    await delivered(webhooks)
    await desk.happen()  # not looked at when the backup was made
    former, head = desk.log.log_id, desk.log.head()
    desk.execute("INSERT INTO kinora_log_predecessors (log_id, head) VALUES (%s, %s)", former, head)
    desk.log.log_id = f"log_{'f' * 32}"
    (fresh,) = await desk.happen()
    after = await desk.webhooks()
    with caplog.at_level(logging.WARNING):
        await delivered(after)
    assert inbox.ids[2:] == [fresh]
    assert "redeliver" in caplog.text
    waited = next(row for row in desk.rows() if row["status"] == "failed")
    assert waited["attempts"][-1]["error"] == "log_restored"


async def test_it_goes_on_by_itself_when_the_log_grows(desk: Desk, inbox: Inbox) -> None:
    await desk.subscribe(inbox.url)
    webhooks = await desk.webhooks()
    running = asyncio.create_task(webhooks.run())
    try:
        wanted = await desk.happen(3)
        webhooks._wake.set()
        await until(lambda: len(inbox.got) == 3)
        assert sorted(inbox.ids) == sorted(wanted)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_what_cannot_be_signed_is_not_sent(desk: Desk, inbox: Inbox) -> None:
    subscription_id, _ = await desk.subscribe(inbox.url)
    desk.execute("UPDATE kinora_subscriptions SET sealed = 'x' WHERE subscription_id = %s", subscription_id)
    await desk.happen()
    await delivered(await desk.webhooks())
    assert inbox.got == []
    assert desk.rows()[0]["attempts"][0]["error"] == "unsigned"


async def test_an_unexpected_failure_leaves_the_delivery_waiting(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("command_api.webhooks.delivery.RETRY_SECONDS", 0.01)

    async def broken(*_: object) -> Answer:
        raise RuntimeError("a defect of ours")

    await desk.subscribe("https://hooks.example.org/")
    await desk.happen()
    webhooks = await desk.webhooks(post=broken)
    with caplog.at_level(logging.ERROR):
        await webhooks.look()
        await webhooks.finish()
    assert "a defect of ours" in caplog.text
    assert desk.statuses() == ["pending"]
