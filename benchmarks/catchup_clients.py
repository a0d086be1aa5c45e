"""Clients that replay the log, in a process of their own: `python -m benchmarks.catchup_clients`.

The first line on stdin is the plan. The fast client prints one JSON object when it has caught up. Slow ones
print ``ready`` once all have subscribed from the beginning, read little by little, and go with stdin.
"""

import asyncio
import json
import re
import sys
import time
from contextlib import AsyncExitStack, suppress

from pydantic import BaseModel
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

_POSITION = re.compile(r'"position":(\d+)')
_SLOW_FRAMES = 20
_SLOW_SECONDS = 0.5


class Plan(BaseModel):
    """What this process does."""

    url: str
    token: str
    slow: int = 0
    """So many slow clients; 0 for one fast one."""


async def main() -> None:
    plan = Plan.model_validate_json(await asyncio.to_thread(sys.stdin.readline))
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(_subscribed(plan)) for _ in range(plan.slow or 1)]
        if not plan.slow:
            print(json.dumps(await _replay(sockets[0])))
            return
        reading = [asyncio.create_task(_slowly(socket)) for socket in sockets]
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        cut_off = sum(task.done() for task in reading)
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for socket in sockets:
            socket.transport.abort()
        print(json.dumps({"cut_off": cut_off}))


def _subscribed(plan: Plan) -> connect:
    return connect(
        plan.url,
        additional_headers={"Authorization": f"Bearer {plan.token}"},
        subprotocols=["kinora.events.v1"],  # type: ignore[list-item]
        compression=None,
        proxy=None,
        close_timeout=0.5,
    )


async def _begin(socket: ClientConnection) -> None:
    await socket.recv()
    await socket.send(json.dumps({"type": "subscribe", "sub": "all", "from": "earliest"}))


async def _replay(socket: ClientConnection) -> dict[str, float]:
    await _begin(socket)
    began, count, last, ordered = time.monotonic(), 0, 0, True
    async for frame in socket:
        assert isinstance(frame, str)
        if not frame.startswith('{"type":"event"'):
            if '"caught_up"' in frame:
                break
            continue
        found = _POSITION.search(frame)
        position = int(found[1]) if found else 0
        ordered &= position > last
        count, last = count + 1, position
    return {"events": count, "seconds": time.monotonic() - began, "last": last, "ordered": ordered}


async def _slowly(socket: ClientConnection) -> None:
    await _begin(socket)
    with suppress(ConnectionClosed):
        while True:
            for _ in range(_SLOW_FRAMES):
                await socket.recv()
            await asyncio.sleep(_SLOW_SECONDS)


if __name__ == "__main__":
    asyncio.run(main())
