"""A relay with its streams, as tests run it, and what must hold of EVENTS whatever happened."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from nats.aio.client import Client
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError

from command_api.eventlog.log import EventLog
from command_api.messaging.connection import UNREACHABLE, connect
from command_api.messaging.epochs import Epochs
from command_api.messaging.relay import Relay
from command_api.messaging.together import run_together
from command_api.messaging.topology import Topology
from command_api.messaging.wake import LogWake
from command_api.tables import ensure_tables
from schemas.commands.agent import MarkAgentLost, MarkAgentOnline
from schemas.envelope import public_bytes
from schemas.settings import NatsSettings, PostgresSettings
from schemas.subjects import (
    EPOCH_HEADER,
    EVENTS_STREAM,
    EVENTS_SUBJECTS,
    LOG_ID_HEADER,
    POSITION_HEADER,
    PREVIOUS_POSITION_HEADER,
)
from tests.integration.messaging.world import World, eventually

MAX_BYTES = 64 * 2**20


@dataclass
class Outside:
    """What the relay publishes to, and its topology."""

    client: Client
    topology: Topology
    conninfo: str

    @property
    def epochs(self) -> Epochs:
        return Epochs(self.conninfo)

    async def messages(self) -> list[RawStreamMsg]:
        state = (await self.topology.js.stream_info(EVENTS_STREAM)).state
        sequences = range(state.first_seq, state.last_seq + 1) if state.messages else ()
        return [await self.topology.js.get_msg(EVENTS_STREAM, sequence) for sequence in sequences]

    async def last_position(self) -> int:
        try:
            last = await self.topology.js.get_last_msg(EVENTS_STREAM, EVENTS_SUBJECTS)
        except (*UNREACHABLE, APIError):
            return 0  # empty, or just being made
        return int((last.headers or {})[POSITION_HEADER])

    async def caught_up(self, log: EventLog) -> None:
        async def look() -> bool:
            return await self.last_position() == await asyncio.to_thread(log.head)

        await eventually(look, "a relay that has caught up")

    async def in_epoch(self, epoch: int, log: EventLog | None) -> None:
        """Wait until the epoch has begun, and the whole `log` is in the stream under it."""

        async def look() -> bool:
            known = await self.epochs.current()
            return known is not None and known.epoch == epoch

        await eventually(look, f"epoch {epoch}")
        if log is not None:
            await self.caught_up(log)


@asynccontextmanager
async def outside_of(database: PostgresSettings, nats: NatsSettings) -> AsyncIterator[Outside]:
    async with connect(nats, "test") as client:
        topology = Topology(client.jetstream(), MAX_BYTES)
        await topology.ensure_streams()
        await ensure_tables(database.conninfo())
        yield Outside(client, topology, database.conninfo())


@asynccontextmanager
async def relaying(outside: Outside, log: EventLog, client: Client | None = None) -> AsyncIterator[Relay]:
    wake = LogWake(outside.conninfo)
    relay = Relay(client or outside.client, outside.topology, log, outside.epochs, wake.waiter())
    end = asyncio.Event()
    running = asyncio.create_task(run_together(end.wait(), wake.run(), relay.run()))
    try:
        yield relay
    finally:
        end.set()
        await running


async def some_events(world: World, count: int) -> None:
    agent_id = await world.enroll()
    for number in range(count):
        lost = MarkAgentLost(agent_id=agent_id, reason="lease_expired")
        await world.ask(lost if number % 2 else MarkAgentOnline(agent_id=agent_id))


async def check(world: World, outside: Outside, *, epoch: int = 1) -> list[RawStreamMsg]:
    """The stream holds the whole log: same bytes, same order, every header chained to the one before."""
    stored = await asyncio.to_thread(world.log.read_all, 0, 100_000)
    messages = await outside.messages()
    bodies = [public_bytes(event.position, world.log.log_id, event.state) for event in stored]
    assert [message.data for message in messages] == bodies
    previous = 0
    for message, event in zip(messages, stored, strict=True):
        headers = message.headers or {}
        assert headers[POSITION_HEADER] == str(event.position)
        assert headers[PREVIOUS_POSITION_HEADER] == str(previous)
        assert headers[LOG_ID_HEADER] == world.log.log_id
        assert headers["Nats-Msg-Id"] == event.event_id
        assert headers[EPOCH_HEADER] == str(epoch)
        previous = event.position
    return messages
