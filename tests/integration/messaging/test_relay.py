"""The relay: every event once, in order, without a hole, whatever happens to either end."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from command_api.messaging.relay import BATCH_EVENTS
from command_api.messaging.topology import work_consumer_config
from schemas.commands.agent import MarkAgentLost, MarkAgentOnline
from schemas.settings import NatsSettings, PostgresSettings
from schemas.subjects import EPOCH_HEADER, EVENTS_STREAM, LOG_ID_HEADER, POSITION_HEADER, work_durable
from tests.integration.messaging.relaying import Outside, check, outside_of, relaying, some_events
from tests.integration.messaging.world import World, eventually


@pytest.fixture
async def outside(database: PostgresSettings, nats: NatsSettings) -> AsyncIterator[Outside]:
    async with outside_of(database, nats) as outside:
        yield outside


async def test_the_log_is_published_with_its_attributes(world: World, outside: Outside) -> None:
    async with relaying(outside, world.log):
        await some_events(world, 20)
        await outside.caught_up(world.log)
    messages = await check(world, outside)
    envelope = json.loads(messages[-1].data or b"")
    headers = messages[-1].headers or {}
    assert headers["content-type"] == "application/cloudevents+json"
    assert headers["Nats-Msg-Id"] == envelope["id"]
    assert headers[POSITION_HEADER] == str(envelope["position"])
    assert (envelope["specversion"], envelope["type"]) == ("1.0", "kinora.agent.lost.v1")
    assert envelope["source"] == f"urn:kinora:{world.log.log_id}"
    assert headers[EPOCH_HEADER] == "1"
    subject = f"kinora.v1.{world.organization_id}.{world.workspace_id}.agent.lost"
    assert messages[-1].subject == subject


async def test_it_goes_on_where_the_stream_ends(world: World, outside: Outside) -> None:
    for _ in range(3):
        async with relaying(outside, world.log):
            await some_events(world, 10)
            await outside.caught_up(world.log)
        await some_events(world, 5)
    async with relaying(outside, world.log):
        await outside.caught_up(world.log)
    await check(world, outside)


async def test_a_long_log_is_published_in_batches(world: World, outside: Outside) -> None:
    agent_id = await world.enroll()
    toggles = (MarkAgentOnline(agent_id=agent_id), MarkAgentLost(agent_id=agent_id, reason="shut_down"))
    for number in range(BATCH_EVENTS + 7):
        await world.ask(toggles[number % 2])
    async with relaying(outside, world.log):
        await outside.caught_up(world.log)
    await check(world, outside)


async def test_two_relays_never_publish_twice_or_out_of_order(world: World, outside: Outside) -> None:
    async with relaying(outside, world.log), relaying(outside, world.log), relaying(outside, world.log):
        await asyncio.gather(*(some_events(world, 60) for _ in range(4)))
        await outside.caught_up(world.log)
    await check(world, outside)


async def test_an_emptied_stream_is_filled_again_under_a_new_epoch(world: World, outside: Outside) -> None:
    async with relaying(outside, world.log) as relay:
        await some_events(world, 20)
        await outside.caught_up(world.log)
        await outside.topology.js.delete_stream(EVENTS_STREAM)
        relay.check_soon()
        await outside.topology.ensure_streams()
        await outside.caught_up(world.log)
        await some_events(world, 5)
        await outside.caught_up(world.log)
    await check(world, outside, epoch=2)


async def test_a_stream_that_lost_its_messages_but_not_its_count(world: World, outside: Outside) -> None:
    config = (await outside.topology.js.stream_info(EVENTS_STREAM)).config
    assert config.deny_purge
    async with relaying(outside, world.log):
        await some_events(world, 20)
        await outside.caught_up(world.log)
    # What an administrator's retention would do.
    await outside.topology.js.update_stream(config.evolve(max_age=0.2, duplicate_window=0.1))

    async def empty() -> bool:
        return (await outside.topology.js.stream_info(EVENTS_STREAM)).state.messages == 0

    await eventually(empty, "an emptied stream")
    async with relaying(outside, world.log):
        await outside.caught_up(world.log)
    await check(world, outside, epoch=2)


async def test_the_stream_of_another_log_is_replaced(world: World, outside: Outside) -> None:
    headers = {POSITION_HEADER: "7", LOG_ID_HEADER: "log_of_somebody_else", EPOCH_HEADER: "1"}
    await outside.topology.js.publish("kinora.v1._._.user.registered", b"{}", headers=headers)
    async with relaying(outside, world.log):
        await outside.caught_up(world.log)
    await check(world, outside)


async def test_a_work_queue_that_is_missing_is_made_again_whatever_others_there_are(outside: Outside) -> None:
    js = outside.topology.js
    await outside.topology.ensure_pool("org_1", "default")
    await js.add_consumer("WORK", work_consumer_config("org_2", "somebody-elses", "train", "normal"))
    lost = work_durable("org_1", "default", "validate", "high")
    await js.delete_consumer("WORK", lost)
    assert (await js.stream_info("WORK")).state.consumer_count == 6
    assert await outside.topology.repair()
    assert (await js.consumer_info("WORK", lost)).config.durable_name == lost
    assert not await outside.topology.repair()


async def test_the_topology_is_only_corrected(outside: Outside) -> None:
    await outside.topology.ensure_pool("org_1", "default")
    before = (await outside.topology.js.stream_info(EVENTS_STREAM)).created
    await outside.topology.ensure_streams()
    assert not await outside.topology.repair()
    assert (await outside.topology.js.stream_info(EVENTS_STREAM)).created == before
    await outside.topology.js.delete_stream("WORK")
    assert await outside.topology.repair()
    assert (await outside.topology.js.stream_info("WORK")).state.consumer_count == 6
