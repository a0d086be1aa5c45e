"""The connection outlives whatever the server does, and never answers late."""

import asyncio
from pathlib import Path

import pytest

from kinora.local.servers import EmbeddedServers
from schemas.subjects import agent_inbox, control_subject, heartbeat_subject
from schemas.work import Control, Heartbeat, HeartbeatReply, HeldItem
from tests.integration.trainer_agent.conftest import CAPABILITIES, Parts
from tests.integration.trainer_agent.peer import Peer
from trainer_agent import control
from trainer_agent.connection import Connection
from trainer_agent.credentials import NodeCredentials
from trainer_agent.errors import NoAnswer
from trainer_agent.hello import Standing, introduce
from trainer_agent.orders import Order, Orders
from trainer_agent.settings import AgentSettings
from trainer_agent.waiting import running


async def test_a_server_that_is_absent_at_the_start_is_waited_for(
    peer: Peer, settings: AgentSettings, servers: EmbeddedServers, tmp_path: Path
) -> None:
    server = servers._servers["nats"]
    await server.stop()
    inbox = agent_inbox(settings.agent_id)
    credentials = NodeCredentials(settings.nats, tmp_path / "nats.jwt")
    async with Connection(credentials, name="early", inbox_prefix=inbox) as connection:
        subject = heartbeat_subject(settings.organization_id, settings.agent_id)
        with pytest.raises(NoAnswer, match="not connected"):
            await connection.request(subject, Heartbeat(), HeartbeatReply)
        await server.start()
        await asyncio.wait_for(connection.session_after(0), 30)
        async with asyncio.timeout(30):
            while True:  # the peer comes back by itself, too
                try:
                    await connection.request(subject, Heartbeat(), HeartbeatReply, timeout=1)
                    break
                except NoAnswer:
                    await asyncio.sleep(0.05)


async def test_a_client_that_was_closed_for_good_is_replaced_with_its_subscriptions(
    peer: Peer, settings: AgentSettings, tmp_path: Path
) -> None:
    orders, standing = Orders(), Standing()
    held = HeldItem(item_id="job_" + "0" * 32, attempt=1)
    orders.hold(held)
    credentials = NodeCredentials(settings.nats, tmp_path / "nats.jwt")
    connection = Connection(credentials, name="replaced", inbox_prefix=agent_inbox(settings.agent_id))
    control.listen(connection, settings, orders)
    hello = introduce(connection, settings, CAPABILITIES, standing, lambda: None)
    async with connection, running(hello):
        await asyncio.wait_for(standing.accepted.wait(), 30)
        first = connection.client
        assert first is not None
        # What nats-py does when the server says that an authentication has run out.
        await first._process_err("'user authentication expired'")
        await peer.until(lambda: len(peer.hellos) == 2)
        assert connection.client is not first
        pushed = Control(held=held, desired="stop").model_dump_json().encode()
        await peer.client.publish(control_subject(settings.organization_id, settings.agent_id), pushed)
        await asyncio.wait_for(orders.news_after(0), 30)
        assert orders.order is Order.STOP


async def test_an_agent_may_not_listen_to_others(parts: Parts, peer: Peer) -> None:
    client = parts.connection.client
    assert client is not None
    overheard = await client.subscribe("kinora.report.>")
    await client.flush()
    await peer.client.publish("kinora.report.x.y.z", b"secret")
    with pytest.raises(TimeoutError):
        await overheard.next_msg(timeout=0.5)
