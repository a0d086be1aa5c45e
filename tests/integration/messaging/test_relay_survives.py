"""What may happen to EVENTS or to a relay: afterwards the stream holds the log, once and in order."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import PubAck, RawStreamMsg

from command_api.eventlog.log import EventLog
from command_api.eventlog.reader import RawEvent
from command_api.messaging.epochs import epoch_of
from command_api.messaging.stream_places import place_after
from command_api.messaging.together import end
from command_api.messaging.topology import events_config
from kinora.local.servers import EmbeddedServers
from schemas.settings import NatsSettings, PostgresSettings
from schemas.subjects import (
    EPOCH_HEADER,
    EVENTS_STREAM,
    ORGANIZATION_EVENTS,
    POSITION_HEADER,
    subscriber_durable,
)
from tests.integration.messaging.relaying import (
    MAX_BYTES,
    Outside,
    check,
    outside_of,
    relaying,
    some_events,
)
from tests.integration.messaging.world import World, eventually


@pytest.fixture
async def outside(database: PostgresSettings, nats: NatsSettings) -> AsyncIterator[Outside]:
    async with outside_of(database, nats) as outside:
        yield outside


class Deaf(Client):
    """Loses the first answers to commits, as a connection does that is cut after the server did the work."""

    def __init__(self, client: Client, lost: int) -> None:
        self._client = client
        self.lost = lost

    def __getattribute__(self, name: str) -> Any:
        if name in ("request", "lost", "_client"):
            return object.__getattribute__(self, name)
        return getattr(self._client, name)

    async def request(self, *arguments: Any, **options: Any) -> Msg:
        answer = await self._client.request(*arguments, **options)
        if "Nats-Batch-Commit" in (options.get("headers") or {}) and self.lost:
            self.lost -= 1
            raise NatsTimeoutError
        return answer


async def test_a_batch_whose_acknowledgement_was_lost_is_not_stored_twice(
    world: World, outside: Outside
) -> None:
    await some_events(world, 20)
    deaf = Deaf(outside.client, 1)
    async with relaying(outside, world.log, deaf):
        await outside.caught_up(world.log)
        await some_events(world, 20)
        await outside.caught_up(world.log)
    assert deaf.lost == 0
    await check(world, outside)


async def test_a_batch_sent_again_is_refused(world: World, outside: Outside) -> None:
    async with relaying(outside, world.log):
        await some_events(world, 20)
        await outside.caught_up(world.log)
    for message in await outside.messages():
        again = await _publish_again(outside, message)
        assert again.duplicate
    await check(world, outside)


class Paused:
    """A log whose reader is stopped between reading a page and publishing it, as SIGSTOP would."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.hold = False
        self.held = threading.Event()
        self.go_on = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def read_all(self, after: int, limit: int) -> list[RawEvent]:
        page = self._log.read_all(after, limit)
        if self.hold and page:
            self.held.set()
            self.go_on.wait(30)
        return page


@pytest.mark.parametrize("refilled", [False, True], ids=["same_epoch", "after_a_refill"])
async def test_a_zombie_relay_changes_nothing(world: World, outside: Outside, refilled: bool) -> None:
    paused = Paused(world.log)
    async with relaying(outside, paused):  # type: ignore[arg-type]
        await some_events(world, 5)
        await outside.caught_up(world.log)
        paused.hold = True
        await some_events(world, 5)
        assert await asyncio.to_thread(paused.held.wait, 20)
        async with relaying(outside, world.log) as successor:
            await some_events(world, 5)
            await outside.caught_up(world.log)
            if refilled:
                await outside.epochs.declare_broken(1, "a test says so")
                successor.check_soon()
                await outside.in_epoch(2, world.log)
            paused.hold = False
            paused.go_on.set()
            await some_events(world, 5)
            await outside.caught_up(world.log)
        # The successor is gone and the zombie goes on, from where the stream really ends.
        await some_events(world, 5)
        await outside.caught_up(world.log)
    await check(world, outside, epoch=2 if refilled else 1)


async def test_a_store_that_is_gone_is_filled_again(
    world: World, outside: Outside, servers: EmbeddedServers
) -> None:
    async with relaying(outside, world.log):
        await some_events(world, 20)
        await outside.caught_up(world.log)
        await _exchange_store(servers, shutil.rmtree)
        await some_events(world, 5)
        await outside.in_epoch(2, world.log)
    await check(world, outside, epoch=2)


@pytest.mark.parametrize("alive", [True, False], ids=["seen_by_its_relay", "seen_by_the_next_relay"])
async def test_a_store_that_lost_its_end_is_filled_again(
    world: World, outside: Outside, servers: EmbeddedServers, alive: bool
) -> None:
    older = servers.folder.nats / "older-store"

    def keep(store: Any) -> None:
        shutil.copytree(store, older)

    def put_back(store: Any) -> None:
        shutil.rmtree(store)
        older.rename(store)

    async def published(relay_may_live: bool) -> None:
        async with relaying(outside, world.log) as relay:
            await some_events(world, 10)
            await outside.caught_up(world.log)
            relay.check_soon()
            await eventually(marked, "a mark of how far the stream was filled")
            if relay_may_live:
                await _exchange_store(servers, put_back)
                relay.check_soon()
                await outside.in_epoch(2, world.log)

    async def marked() -> bool:
        known = await outside.epochs.current()
        return known is not None and known.position == await asyncio.to_thread(world.log.head)

    async with relaying(outside, world.log):
        await some_events(world, 10)
        await outside.caught_up(world.log)
    await _exchange_store(servers, keep)
    await published(relay_may_live=alive)
    if not alive:
        await _exchange_store(servers, put_back)
        async with relaying(outside, world.log):
            await outside.in_epoch(2, world.log)
    await check(world, outside, epoch=2)


async def test_a_stream_that_somebody_else_made_anew_is_filled_again(world: World, outside: Outside) -> None:
    async with relaying(outside, world.log) as relay:
        await some_events(world, 20)
        await outside.caught_up(world.log)
        await outside.topology.js.delete_stream(EVENTS_STREAM)
        await outside.topology.js.add_stream(events_config(MAX_BYTES))
        relay.check_soon()
        await outside.in_epoch(2, world.log)
    await check(world, outside, epoch=2)


async def test_a_stream_of_an_earlier_epoch_is_not_gone_on_with(world: World, outside: Outside) -> None:
    async with relaying(outside, world.log):
        await some_events(world, 20)
        await outside.caught_up(world.log)
    earlier = await outside.messages()
    await outside.epochs.declare_broken(1, "a test says so")
    async with relaying(outside, world.log):
        await outside.in_epoch(2, world.log)
        # Somebody puts the former stream back.
        await outside.topology.recreate_events((earlier[0].seq or 0) - 1)
        for message in earlier:
            await _publish_again(outside, message)
        await some_events(world, 5)
        await outside.in_epoch(3, world.log)
    await check(world, outside, epoch=3)


@asynccontextmanager
async def subscriber(world: World, outside: Outside) -> AsyncIterator[tuple[list[int], set[str]]]:
    """Follows by a durable consumer; what it has seen, and under which epochs."""
    durable = subscriber_durable(world.organization_id, "mirror")
    subjects = [ORGANIZATION_EVENTS.format(organization_id=world.organization_id)]
    seen: list[int] = []
    epochs: set[str] = set()

    async def follow() -> None:
        """All that a subscriber needs: pull, skip what it has, acknowledge."""
        while True:
            subscription = await outside.client.jetstream().pull_subscribe_bind(durable, stream=EVENTS_STREAM)
            try:
                # It went with its stream, and the orchestrator makes it again.
                await outside.topology.make_subscriber(durable, subjects, 1)
                while True:
                    for message in await subscription.fetch(1, timeout=0.5):
                        headers = message.headers or {}
                        epochs.add(headers[EPOCH_HEADER])
                        if (position := int(headers[POSITION_HEADER])) > (seen[-1] if seen else 0):
                            seen.append(position)
                        await message.ack()
            except Exception:
                with suppress(Exception):
                    await subscription.unsubscribe()
                await asyncio.sleep(0.05)

    following = asyncio.create_task(follow())
    try:
        yield seen, epochs
        stored = await asyncio.to_thread(world.log.read_all, 0, 1000)
        assert seen == [event.position for event in stored if event.organization_id == world.organization_id]
    finally:
        await end([following])


async def test_a_subscriber_goes_on_over_a_refill_by_its_position(world: World, outside: Outside) -> None:
    async with subscriber(world, outside) as (seen, epochs), relaying(outside, world.log) as relay:
        await some_events(world, 20)
        await eventually(_reached(seen, world.log), "a subscriber that has caught up")
        await outside.epochs.declare_broken(1, "a test says so")
        relay.check_soon()
        await outside.in_epoch(2, world.log)
        await some_events(world, 5)
        await eventually(_reached(seen, world.log), "a subscriber that has caught up")
    assert epochs == {"1", "2"}


async def test_an_end_that_was_lost_before_it_was_marked_is_published_again_where_it_was(
    world: World, outside: Outside, servers: EmbeddedServers
) -> None:
    """The consumer knows more than the stream then, and misses nothing; no event counts as a duplicate."""
    older = servers.folder.nats / "older-store"

    def put_back(store: Path) -> None:
        for consumers in store.rglob(f"{EVENTS_STREAM}/obs"):
            shutil.rmtree(older / consumers.relative_to(store))
            shutil.copytree(consumers, older / consumers.relative_to(store))
        shutil.rmtree(store)
        older.rename(store)

    async with subscriber(world, outside) as (seen, epochs):
        async with relaying(outside, world.log):
            await some_events(world, 10)
            await eventually(_reached(seen, world.log), "a subscriber that has caught up")
        await _exchange_store(servers, lambda store: shutil.copytree(store, older))
        async with relaying(outside, world.log):
            await some_events(world, 10)
            await eventually(_reached(seen, world.log), "a subscriber that has caught up")
        await _exchange_store(servers, put_back)
        async with relaying(outside, world.log):
            await outside.caught_up(world.log)
            await some_events(world, 5)
            await eventually(_reached(seen, world.log), "a subscriber that has caught up")
    assert epochs == {"1"}
    await check(world, outside, epoch=1)


async def test_a_position_leads_to_its_place_in_the_stream(world: World, outside: Outside) -> None:
    assert (await place_after(outside.topology.js, 0)).sequence == 1
    async with relaying(outside, world.log) as relay:
        await some_events(world, 20)
        await outside.caught_up(world.log)
        for epoch in (1, 2):
            messages = await outside.messages()
            positions = [int((message.headers or {})[POSITION_HEADER]) for message in messages]
            assert (await place_after(outside.topology.js, 0)).sequence == messages[0].seq
            for at in (0, 1, 11, len(messages) - 2):
                place = await place_after(outside.topology.js, positions[at])
                assert (place.epoch, place.sequence) == (epoch, messages[at + 1].seq)
            end = await place_after(outside.topology.js, positions[-1])
            assert end.sequence == (messages[-1].seq or 0) + 1
            assert epoch_of(end.sequence) == epoch
            if epoch == 1:
                await outside.epochs.declare_broken(1, "a test says so")
                relay.check_soon()
                await outside.in_epoch(2, world.log)


async def _publish_again(outside: Outside, message: RawStreamMsg) -> PubAck:
    """By itself, as it once was published in a batch."""
    headers = {name: value for name, value in (message.headers or {}).items() if "Batch" not in name}
    headers.pop("Nats-Expected-Last-Sequence", None)
    js = outside.topology.js
    return await js.publish(message.subject or "", message.data or b"", headers=headers)


async def _exchange_store(servers: EmbeddedServers, change: Callable[[Any], None]) -> None:
    """Do something to what JetStream keeps on disk while the server is down."""
    await servers.child("nats").stop()
    await asyncio.to_thread(change, servers.folder.nats / "store")
    await servers.revive("nats")


def _reached(seen: list[int], log: EventLog) -> Callable[[], Any]:
    async def look() -> bool:
        return bool(seen) and seen[-1] == await asyncio.to_thread(log.head)

    return look
