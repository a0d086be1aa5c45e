"""JetStream loses everything: until the relay has the whole log in EVENTS again, with appends going on."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nats.aio.client import Client
from nats.js.errors import APIError

from benchmarks.installation import console, control_plane, scratch
from benchmarks.report import Result
from benchmarks.seeding import fill
from command_api.eventlog.log import EventLog
from command_api.handlers.base import Context
from command_api.handlers.bus import CommandBus
from command_api.handlers.registry import HANDLERS
from command_api.messaging.connection import UNREACHABLE, connect
from kinora.local.servers import EmbeddedServers
from schemas.commands.agent import EnrollAgent
from schemas.ids import Prefix, new_id
from schemas.subjects import EPOCH_HEADER, EVENTS_STREAM, EVENTS_SUBJECTS, POSITION_HEADER

EVENTS = 1_000_000
QUICK_EVENTS = 50_000
TARGET_SECONDS = 90.0
APPENDS_PER_SECOND = 50
_LOOK_SECONDS = 0.1


def measure(*, events: int | None = None, quick: bool = False) -> list[Result]:
    """Run it all; the servers are gone afterwards."""
    return asyncio.run(_measure(events or (QUICK_EVENTS if quick else EVENTS)))


async def _measure(events: int) -> list[Result]:
    with scratch() as folder:
        data = folder / "data"
        async with EmbeddedServers(data, only=["postgres"]) as servers:
            console.print(f"seeding {events:,} events …")
            await asyncio.to_thread(fill, servers.postgres, events)
        async with control_plane(data, roles=["orchestrator"]) as plane:
            servers = plane.servers
            async with connect(servers.nats_control, "benchmark") as client, _appending(servers) as log:
                console.print("the first filling, to a tenth …")
                await _filled(client, log, epoch=1, share=0.1)
                console.print("JetStream loses its store …")
                await servers.child("nats").stop()
                await asyncio.to_thread(shutil.rmtree, servers.folder.nats / "store")
                appended_before = await asyncio.to_thread(log.head)
                await servers.revive("nats")
                began = time.perf_counter()
                await _filled(client, log, epoch=2)
                seconds = time.perf_counter() - began
                appended = await asyncio.to_thread(log.head) - appended_before
                messages = (await client.jetstream().stream_info(EVENTS_STREAM)).state.messages
    target = TARGET_SECONDS if events == EVENTS else None
    return [
        Result(f"{events:,} events back in EVENTS", seconds, "s", target),
        Result("events published per second", messages / seconds, "1/s"),
        Result("events appended meanwhile", appended, ""),
    ]


@asynccontextmanager
async def _appending(servers: EmbeddedServers) -> AsyncIterator[EventLog]:
    """Commands at a steady rate, as long as the context lasts."""
    organization_id = new_id(Prefix.ORGANIZATION)
    with EventLog.open(servers.postgres) as log:
        async with CommandBus(log, HANDLERS) as bus:

            async def append() -> None:
                while True:
                    command = EnrollAgent(agent_id=new_id(Prefix.AGENT), name="node", pool="default")
                    await bus.execute(command, Context.system("benchmark", organization_id=organization_id))
                    await asyncio.sleep(1 / APPENDS_PER_SECOND)

            appending = asyncio.create_task(append())
            try:
                yield log
            finally:
                appending.cancel()
                await asyncio.wait({appending})


async def _filled(client: Client, log: EventLog, *, epoch: int, share: float = 1.0) -> None:
    """Wait until the stream holds this share of what the log held a moment ago, under this epoch."""
    while True:
        head = await asyncio.to_thread(log.head)
        try:
            last = await client.jetstream().get_last_msg(EVENTS_STREAM, EVENTS_SUBJECTS)
        except (*UNREACHABLE, APIError):
            await asyncio.sleep(_LOOK_SECONDS)
            continue
        headers = last.headers or {}
        # With appends going on it never stands still: less than a second behind is all there.
        behind = share * head - int(headers[POSITION_HEADER])
        if headers[EPOCH_HEADER] == str(epoch) and behind <= APPENDS_PER_SECOND:
            return
        await asyncio.sleep(_LOOK_SECONDS)
