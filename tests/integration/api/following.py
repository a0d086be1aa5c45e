"""A client of the live feed, as small as possible."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from command_api.feed.frames import SUBPROTOCOL

if TYPE_CHECKING:  # processes that only follow need not have the whole service at hand
    from tests.integration.api.running import Account, Visit

Frame = dict[str, Any]


@dataclass
class Follower:
    """One connection to the feed."""

    socket: ClientConnection
    hello: Frame

    async def send(self, frame: Frame) -> None:
        await self.socket.send(json.dumps(frame))

    async def subscribe(self, start: Any, sub: str = "s", **more: Any) -> None:
        begin = {"position": start} if isinstance(start, int) else start
        await self.send({"type": "subscribe", "sub": sub, "from": begin, **more})

    async def receive(self) -> Frame:
        async with asyncio.timeout(15):
            frame: Frame = json.loads(await self.socket.recv())
        return frame

    async def until(self, kind: str) -> list[Frame]:
        """Frames up to and with the first of this kind."""
        frames = [await self.receive()]
        while frames[-1]["type"] != kind:
            frames.append(await self.receive())
        return frames

    async def events(self, count: int) -> list[Frame]:
        """The next `count` event frames; others are skipped."""
        found: list[Frame] = []
        while len(found) < count:
            frame = await self.receive()
            if frame["type"] == "event":
                found.append(frame)
        return found

    async def closed(self) -> int:
        """The close code with which the server ends the connection."""
        async with asyncio.timeout(15):
            with suppress(ConnectionClosed):
                while True:  # what was sent before has to be read first
                    await self.socket.recv()
        assert self.socket.close_code is not None
        return self.socket.close_code


def feed_url(visit: "Visit") -> str:
    return visit.service.url.replace("http", "ws") + "/api/v1/events/ws"


@asynccontextmanager
async def raw_socket(
    visit: "Visit",
    headers: dict[str, str],
    protocols: tuple[str, ...] = (SUBPROTOCOL,),
    query: str = "",
) -> AsyncIterator[ClientConnection]:
    async with connect(
        feed_url(visit) + query,
        subprotocols=[Subprotocol(name) for name in protocols] or None,
        additional_headers=headers,
        proxy=None,
        compression=None,
        close_timeout=0.5,  # a test that leaves with frames unread need not wait for the handshake
    ) as socket:
        yield socket


@asynccontextmanager
async def following(visit: "Visit", account: "Account") -> AsyncIterator[Follower]:
    async with raw_socket(visit, {"Authorization": f"Bearer {account.token}"}) as socket:
        follower = Follower(socket, {})
        follower.hello = await follower.receive()
        assert follower.hello["type"] == "hello"
        yield follower
