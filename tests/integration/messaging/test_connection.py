"""A client that the library gives up for good is noticed, so that its owner replaces it."""

import asyncio

import pytest
from nats.aio.client import Client

from command_api.feed.telemetry import TelemetryHub
from command_api.messaging.connection import ConnectionGone, connect, stay_open
from schemas.events.job import ProgressPoint
from schemas.ids import Prefix, new_id
from schemas.settings import NatsSettings
from schemas.subjects import telemetry_subject
from schemas.work import TelemetryLine
from tests.integration.messaging.world import eventually

ORGANIZATION, JOB = new_id(Prefix.ORGANIZATION), new_id(Prefix.JOB)
POINT = ProgressPoint(
    step=1, loss=1.0, learning_rate=1e-3, grad_norm=1.0, tokens=1, tokens_per_second=1.0, step_seconds=1.0
)
LINE = TelemetryLine(job_id=JOB, attempt=1, points=(POINT,)).model_dump_json().encode()


async def send_too_much(client: Client) -> None:
    """The server answers with an error, after which the library never connects again."""
    await client.publish("anything", b"x" * client.max_payload, headers={"Too": "much"})


async def test_a_client_that_was_given_up_is_noticed(nats: NatsSettings) -> None:
    async with connect(nats, "test") as client:
        watching = asyncio.create_task(stay_open(client))
        await send_too_much(client)
        with pytest.raises(ConnectionGone):
            await asyncio.wait_for(watching, 20)


async def test_watchers_that_come_together_share_one_subscription(nats: NatsSettings) -> None:
    subject = telemetry_subject(ORGANIZATION, JOB)
    async with TelemetryHub(nats) as hub, connect(nats, "agent") as agent:

        async def connected() -> bool:
            return hub.connected

        await eventually(connected, "telemetry's connection")
        watching = [hub.watch(ORGANIZATION, JOB) for _ in range(3)]
        watches = await asyncio.gather(*(one.__aenter__() for one in watching))
        assert hub._client is not None
        await hub._client.flush()
        await agent.publish(subject, LINE)
        for watch in watches:
            await asyncio.wait_for(watch.fresh.wait(), 20)
        # A second subscription would have brought it again by the time that this is answered.
        await hub._client.flush()
        assert [len(watch.points) for watch in watches] == [1, 1, 1]
        await asyncio.gather(*(one.__aexit__(None, None, None) for one in watching))
        assert hub._client._subs == {}


async def test_telemetry_connects_anew_when_its_client_was_given_up(nats: NatsSettings) -> None:
    subject = telemetry_subject(ORGANIZATION, JOB)
    async with TelemetryHub(nats) as hub, connect(nats, "agent") as agent:

        async def connected() -> bool:
            return hub.connected

        await eventually(connected, "telemetry's connection")
        async with hub.watch(ORGANIZATION, JOB) as watch:
            first = hub._client
            assert first is not None
            await send_too_much(first)

            async def heard() -> bool:
                await agent.publish(subject, LINE)
                return watch.fresh.is_set()

            await eventually(heard, "a line over the new connection")
            assert hub._client is not first
