"""Real processes under every fault that their surroundings know, judged by what callers and readers saw.

While `tests.faults.traffic` gives commands and reads, processes are killed and frozen, servers restarted and
wiped, and wires cut, slowed, parted and robbed of the answers to COMMIT and to the relay's publishing. The
seed decides on the faults and on what callers do, so a run can be repeated as far as the machine's timing
allows.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from tests.faults.judging import judge
from tests.faults.plane import CONTROL, Plane, wired_plane
from tests.faults.traffic import Run, Traffic, sign_up

BETWEEN_FAULTS = (0.2, 1.2)


async def run(folder: Path, seconds: float, seed: int, say: Callable[[str], None] = lambda text: None) -> Run:
    """Torment a control plane for so long, let it recover, and judge it."""
    done, chance = Run(seed), random.Random(seed)
    async with wired_plane(folder) as plane:
        await plane.start_all()
        async with httpx.AsyncClient(base_url=plane.urls[0], trust_env=False, timeout=10) as http:
            await sign_up(http)
            traffic = Traffic(plane, http, done, chance)
            async with traffic.reader():
                async with traffic.callers():
                    await _torment(plane, done, chance, seconds, say)
                await plane.all_ready()
                done.broken += await judge(plane, http, done)
        for wire in plane.wires:
            done.faults.update(wire.happened)
    return done


async def _torment(
    plane: Plane, run: Run, chance: random.Random, seconds: float, say: Callable[[str], None]
) -> None:
    ends = time.monotonic() + seconds
    acts = _acts(plane, chance)
    queue: list[str] = []
    while time.monotonic() < ends or len(run.faults) < len(acts):
        if not queue:  # every kind in turn, each round in an order of its own
            queue = sorted(acts, key=lambda _: chance.random())
        name = queue.pop()
        say(name)
        await acts[name]()
        run.faults[name] += 1
        await asyncio.sleep(chance.uniform(*BETWEEN_FAULTS))


def _acts(plane: Plane, chance: random.Random) -> dict[str, Callable[[], Awaitable[object]]]:
    wires = plane.wires

    async def swallow_commits() -> None:
        for name in ("api", "api-2", "orchestrator"):
            plane.database[name].swallow("commit", chance.randint(1, 3))

    async def swallow_publishing() -> None:
        plane.broker["orchestrator"].swallow("publish", chance.randint(1, 3))

    async def cut_some() -> None:
        for wire in chance.sample([wire for wire in wires if wire.carries], k=2):
            await wire.cut()

    async def slow_down() -> None:
        wire = chance.choice(wires)
        wire.delay_seconds = chance.uniform(0.01, 0.2)
        await asyncio.sleep(chance.uniform(0.5, 1.5))
        wire.delay_seconds = 0.0

    async def part() -> None:
        wire = chance.choice(wires)
        wire.part()
        await asyncio.sleep(chance.uniform(0.5, 3.0))
        await wire.mend()

    async def kill() -> None:
        await plane.kill(chance.choice(CONTROL))

    async def freeze() -> None:
        await plane.freeze(chance.choice(CONTROL), chance.uniform(0.5, 2.0))

    return {
        "commit replies to be swallowed": swallow_commits,
        "publish replies to be swallowed": swallow_publishing,
        "wires cut": cut_some,
        "a wire slowed": slow_down,
        "a wire parted": part,
        "a process killed": kill,
        "a process frozen": freeze,
        "backends terminated": plane.terminate_backends,
        "postgres killed": lambda: plane.kill_server("postgres"),
        "nats killed": lambda: plane.kill_server("nats"),
        "JetStream wiped": plane.wipe_broker,
    }
