"""Many WebSocket clients of the feed in a process of their own: `python -m benchmarks.feed_clients`.

The first line on stdin says whom to follow; ``ready`` is printed once every client has caught up. At the end
of stdin each client's frames, as (position, monotonic seconds), are printed as one JSON array.
"""

import asyncio
import json
import sys
import time

from pydantic import BaseModel
from websockets.asyncio.client import ClientConnection, connect

SUBPROTOCOL = "kinora.events.v1"


class Plan(BaseModel):
    """Which clients there are."""

    url: str
    token: str
    followers: int
    """Clients that follow everything."""
    jobs: list[str]
    """One client follows each."""


async def main() -> None:
    plan = Plan.model_validate_json(await asyncio.to_thread(sys.stdin.readline))
    filters: list[dict[str, str]] = [{} for _ in range(plan.followers)] + [
        {"job_id": job_id} for job_id in plan.jobs
    ]
    seen: list[list[tuple[int, float]]] = [[] for _ in filters]
    ready = [asyncio.Event() for _ in filters]
    gate = asyncio.Semaphore(20)
    clients = [
        asyncio.create_task(_client(plan, wanted, frames, caught_up, gate))
        for wanted, frames, caught_up in zip(filters, seen, ready, strict=True)
    ]
    waiting = asyncio.create_task(_all(ready))
    done, _ = await asyncio.wait([*clients, waiting], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()  # a client that failed is an error, not a missing figure
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    print(json.dumps(seen))


async def _all(events: list[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def _client(
    plan: Plan,
    wanted: dict[str, str],
    frames: list[tuple[int, float]],
    caught_up: asyncio.Event,
    gate: asyncio.Semaphore,
) -> None:
    async with gate:
        socket = await connect(
            plan.url,
            additional_headers={"Authorization": f"Bearer {plan.token}"},
            subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
            compression=None,
            proxy=None,
            max_queue=None,
        )
    async with socket:
        await _follow(socket, wanted, frames, caught_up)


async def _follow(
    socket: ClientConnection,
    wanted: dict[str, str],
    frames: list[tuple[int, float]],
    caught_up: asyncio.Event,
) -> None:
    subscribe = {"type": "subscribe", "sub": "all", "filter": wanted, "from": "latest"}
    await socket.send(json.dumps(subscribe))
    async for text in socket:
        arrived = time.monotonic()
        frame = json.loads(text)
        match frame["type"]:
            case "event":
                frames.append((frame["position"], arrived))
            case "caught_up":
                caught_up.set()
            case "error" | "reset":
                raise RuntimeError(f"the feed answered {frame}")


if __name__ == "__main__":
    asyncio.run(main())
