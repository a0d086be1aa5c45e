"""The broker leaves nothing open, however it ends, and hears again after a start that failed."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from command_api.messaging.broker import Broker, Desk, make_broker, subscribe
from command_api.messaging.connection import ConnectionGone, connect, stay_open
from command_api.messaging.topology import Topology
from command_api.nats_auth.users import ControlUser
from kinora.local.servers import EmbeddedServers
from schemas.ids import Prefix, new_id
from schemas.settings import NatsSettings
from schemas.subjects import renew_subject
from schemas.work import RenewReply, RenewRequest
from tests.integration.messaging.world import without

ORGANIZATION, AGENT = new_id(Prefix.ORGANIZATION), new_id(Prefix.AGENT)
MEBIBYTE = 2**20
NAME = "test-broker"


async def never(*_: object) -> NoReturn:
    raise AssertionError("nobody asked for this")


async def renewed(organization: str, agent: str, _request: RenewRequest) -> RenewReply:
    return RenewReply(detail=f"{agent} of {organization}")


async def report(_message: Msg) -> None:
    raise AssertionError("nobody reported")


DESK = Desk(claim=never, heartbeat=never, presign=never, hello=never, renew=renewed, report=report)


def broker_of(nats: NatsSettings) -> Broker:
    broker = make_broker(nats.url, ControlUser.of(nats, NAME))
    subscribe(broker, DESK)
    return broker


@asynccontextmanager
async def streams(nats: NatsSettings) -> AsyncIterator[Client]:
    async with connect(nats, "test") as client:
        await Topology(client.jetstream(), 64 * MEBIBYTE).ensure_streams()
        yield client


def connections() -> list[Client]:
    """The broker's that are not closed. What was left open and forgotten fails the test when collected."""
    gc.collect()
    clients = [each for each in gc.get_objects() if isinstance(each, Client) and not each.is_closed]
    return [each for each in clients if each.options.get("name") == NAME]


async def test_it_hears_after_a_start_that_failed(nats: NatsSettings) -> None:
    broker = broker_of(nats)
    with pytest.raises(NotFoundError):  # there is no stream of reports yet
        await broker.start()
    assert connections() == []
    async with streams(nats) as client:
        await broker.start()
        request = RenewRequest().model_dump_json().encode()
        answer = await client.request(renew_subject(ORGANIZATION, AGENT), request, timeout=10)
        assert RenewReply.model_validate_json(answer.data).detail == f"{AGENT} of {ORGANIZATION}"
        await broker.stop()
    assert connections() == []


async def test_it_ends_while_there_is_no_server(nats: NatsSettings, servers: EmbeddedServers) -> None:
    async with streams(nats):
        broker = broker_of(nats)
        await broker.start()
        client = broker.connection
        async with without(servers, "nats"):
            while client.is_connected:  # noqa: ASYNC110 - the library tells nobody
                await asyncio.sleep(0.01)
            await broker.stop()
            assert client.is_closed
    assert connections() == []


async def test_it_ends_after_its_connection_was_given_up(nats: NatsSettings) -> None:
    async with streams(nats):
        broker = broker_of(nats)
        await broker.start()
        watching = asyncio.create_task(stay_open(broker.connection))
        await broker.connection.close()
        with pytest.raises(ConnectionGone):  # the pull loop lets it be noticed
            await asyncio.wait_for(watching, 20)
        await broker.stop()
    assert connections() == []


async def test_a_start_that_is_cancelled_leaves_nothing_open(
    nats: NatsSettings, servers: EmbeddedServers
) -> None:
    async with without(servers, "nats"):
        starting = asyncio.create_task(broker_of(nats).start())
        while not connections():  # noqa: ASYNC110 - it is made somewhere inside
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting})
        assert starting.cancelled()
        assert connections() == []
