"""NATS subscribers: the orchestrator makes their consumers, and makes them again where they stopped."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from command_api.messaging.connection import connect
from command_api.messaging.epochs import Epochs, epoch_of
from command_api.messaging.subscriber_cursors import SubscriberCursors
from command_api.nats_auth.keys import new_seed, public_key
from command_api.nats_auth.users import FreshCredentials, credentials_text, signed_subscriber
from schemas.commands.subscription import CreateSubscription, DeleteSubscription
from schemas.ids import Prefix, new_id
from schemas.settings import NatsSettings, PostgresSettings
from schemas.subjects import (
    EVENTS_STREAM,
    POSITION_HEADER,
    SUBSCRIBER_API,
    subscriber_durable,
    subscriber_inbox,
)
from schemas.subscriptions import EventFilter
from tests.integration.messaging.world import World, eventually

pytestmark = pytest.mark.usefixtures("orchestrator")
SEED = new_seed("user")
ENROLLED = "kinora.agent.enrolled"


async def subscribed(world: World, *, types: tuple[str, ...] = (), after: int = 0) -> str:
    subscription_id = new_id(Prefix.SUBSCRIPTION)
    await world.ask(
        CreateSubscription(
            subscription_id=subscription_id,
            name="warehouse",
            owner_id=world.user_id,
            kind="nats",
            filter=EventFilter(types=types),
            after=after,
            pinned={},
            public_key=public_key(SEED),
            expires_at=datetime.now(UTC) + timedelta(hours=1),
        )
    )
    return subscription_id


@asynccontextmanager
async def subscriber(nats: NatsSettings, world: World, subscription_id: str) -> AsyncIterator[Client]:
    signed = signed_subscriber(nats, public_key(SEED), world.organization_id, subscription_id, 60)
    client = Client()
    await client.connect(
        nats.url,
        user_credentials=FreshCredentials(lambda: credentials_text(signed.jwt, SEED)),
        inbox_prefix=subscriber_inbox(subscription_id),
    )
    try:
        yield client
    finally:
        await client.close()


async def fetched(client: Client, durable: str, count: int) -> list[Msg]:
    """So many messages, acknowledged; the consumer may be made only now."""
    found: list[Msg] = []

    async def pull() -> bool:
        subscription = await client.jetstream(prefix=SUBSCRIBER_API).pull_subscribe_bind(
            durable, stream=EVENTS_STREAM
        )
        try:
            while len(found) < count:
                (message,) = await subscription.fetch(1, timeout=1)
                await message.ack_sync(timeout=5)
                found.append(message)
        except Exception:
            return False
        finally:
            await subscription.unsubscribe()
        return len(found) == count

    await eventually(pull, f"{count} events")
    return found


def positions(messages: list[Msg]) -> list[int]:
    return [int((message.headers or {})[POSITION_HEADER]) for message in messages]


async def test_a_subscriber_goes_on_behind_what_it_acknowledged_when_the_stream_is_filled_anew(
    world: World, nats: NatsSettings, database: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("relay", "subscribers"):
        monkeypatch.setattr(f"command_api.messaging.{part}.CHECK_SECONDS", 0.1)
    for _ in range(4):
        await world.enroll()
    subscription_id = await subscribed(world, types=(ENROLLED,))
    durable = subscriber_durable(world.organization_id, subscription_id)
    epochs, cursors = Epochs(database.conninfo()), SubscriberCursors(database.conninfo())
    async with subscriber(nats, world, subscription_id) as client:
        first = await fetched(client, durable, 3)
        assert {message.subject.rsplit(".", 2)[-2] for message in first} == {"agent"}
        acknowledged = positions(first)[-1]

        async def kept() -> bool:
            return (await cursors.all()).get(subscription_id) == acknowledged

        await eventually(kept, "the acknowledged position")
        await epochs.declare_broken(1, "a test says so")

        async def refilled() -> bool:
            current = await epochs.current()
            return current is not None and current.epoch == 2

        await eventually(refilled, "the second epoch")
        await world.enroll()
        stored = world.log.read_all(0, 1000, types=(ENROLLED,))
        rest = await fetched(client, durable, len(stored) - len(first))
    assert positions(rest)[0] > acknowledged
    assert {epoch_of(message.metadata.sequence.stream) for message in rest} == {2}
    assert positions([*first, *rest]) == [event.position for event in stored]


async def test_a_subscription_begins_and_ends(world: World, nats: NatsSettings) -> None:
    await world.enroll()
    head = world.log.head()
    subscription_id = await subscribed(world, after=head)
    durable = subscriber_durable(world.organization_id, subscription_id)
    async with subscriber(nats, world, subscription_id) as client:
        events = await fetched(client, durable, 2)
    # The first that happened from then on: the subscription itself.
    assert [message.subject.split(".")[-1] for message in events] == ["created", "credentials_issued"]
    assert positions(events)[0] > head
    await world.ask(DeleteSubscription(subscription_id=subscription_id))
    async with connect(nats, "test") as control:

        async def gone() -> bool:
            try:
                await control.jetstream().consumer_info(EVENTS_STREAM, durable)
            except NotFoundError:
                return True
            return False

        await eventually(gone, "the end of the consumer")
