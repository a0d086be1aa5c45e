"""One client replays all of history over a WebSocket; then a hundred slow ones do, and memory is watched."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process

import psutil
import psycopg

from benchmarks.catchup_clients import Plan
from benchmarks.installation import UNLIMITED, ControlPlane, console, control_plane, scratch
from benchmarks.report import Result
from benchmarks.seeding import Story, fill
from command_api.auth.tokens import READ, AccessTokens, Principal
from kinora.local.role_settings import api_settings
from kinora.local.servers import EmbeddedServers

EVENTS = 1_000_000
QUICK_EVENTS = 50_000
SLOW_CLIENTS = 100
SLOW_SECONDS = 20
SETTLE_SECONDS = 5
"""Until every slow client holds the page that it reads from."""
TARGET_PER_SECOND = 20_000
TARGET_GROWTH_MIB = 16.0
_MIB = 2**20
_SAMPLE_SECONDS = 0.25
_MEMBERSHIP = """
INSERT INTO kinora_memberships (user_id, organization_id, workspace_id, role) VALUES (%s, %s, %s, 'owner')
"""


def measure(*, quick: bool = False) -> list[Result]:
    """Run it; the servers are gone afterwards."""
    return asyncio.run(_measure(QUICK_EVENTS if quick else EVENTS))


async def _measure(events: int) -> list[Result]:
    story = Story(organizations=1)
    with scratch() as folder:
        data = folder / "data"
        async with EmbeddedServers(data, only=["postgres"]) as servers:
            console.print(f"catchup: seeding {events:,} events …")
            await asyncio.to_thread(fill, servers.postgres, events, story)
        async with control_plane(data, UNLIMITED, roles=["api"]) as plane:
            plan = await asyncio.to_thread(_plan, plane, story)
            api = psutil.Process(int((plane.servers.folder.run / "api.ready").read_text()))
            console.print("catchup: one client replays everything …")
            used = _cpu_seconds(api)
            found = await _replay(plan)
            used = _cpu_seconds(api) - used
            expected = await asyncio.to_thread(_own_events, plane, story)
            console.print(f"catchup: {SLOW_CLIENTS} slow clients …")
            before, settled, most, cut_off = await _slow(plan, api)
    per_second = found["events"] / found["seconds"]
    return [
        Result("events replayed per second", per_second, "events/s", TARGET_PER_SECOND, at_least=True),
        Result("processor time of the API per event", used / found["events"] * 1e6, "µs"),
        Result("events missing or out of order", _wrong(found, expected), "events", 0),
        Result("memory of a slow client", (settled - before) / SLOW_CLIENTS / 1024, "KiB"),
        Result(
            f"memory grown in {SLOW_SECONDS} s of {SLOW_CLIENTS} slow clients",
            (most - settled) / _MIB,
            "MiB",
            TARGET_GROWTH_MIB,
        ),
        Result("slow clients cut off", cut_off, "clients", 0),
    ]


def _wrong(found: dict[str, float], expected: int) -> float:
    return abs(expected - found["events"]) + (not found["ordered"])


def _plan(plane: ControlPlane, story: Story) -> Plan:
    home = story.homes[0]
    place = (home.user_id, home.organization_id, home.workspace_id)
    with psycopg.connect(plane.servers.postgres.conninfo(), autocommit=True) as connection:
        connection.execute(_MEMBERSHIP, place)
    token = AccessTokens.from_settings(api_settings(plane.servers)).issue(Principal(*place, READ))
    return Plan(url=plane.url.replace("http", "ws", 1) + "/api/v1/events/ws", token=token)


def _own_events(plane: ControlPlane, story: Story) -> int:
    query = "SELECT count(*) FROM kinora_events WHERE organization_id = %s"
    with psycopg.connect(plane.servers.postgres.conninfo()) as connection:
        row = connection.execute(query, (story.homes[0].organization_id,)).fetchone()
    return int(row[0]) if row else 0


async def _replay(plan: Plan) -> dict[str, float]:
    clients, output = await _clients(plan)
    found: dict[str, float] = json.loads(output)
    await clients.wait()
    return found


async def _slow(plan: Plan, api: psutil.Process) -> tuple[int, int, int, float]:
    """Memory before, once settled, and at most after that, in bytes; and how many were cut off."""
    before = api.memory_info().rss
    clients, _ = await _clients(plan.model_copy(update={"slow": SLOW_CLIENTS}))
    await asyncio.sleep(SETTLE_SECONDS)
    settled = most = api.memory_info().rss
    for _ in range(int(SLOW_SECONDS / _SAMPLE_SECONDS)):
        await asyncio.sleep(_SAMPLE_SECONDS)
        most = max(most, api.memory_info().rss)
    assert clients.stdin is not None
    assert clients.stdout is not None
    clients.stdin.close()
    cut_off = float(json.loads(await clients.stdout.readline())["cut_off"])
    await clients.wait()
    return before, settled, most, cut_off


async def _clients(plan: Plan) -> tuple[Process, bytes]:
    """The process, and the first line that it prints."""
    clients = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.catchup_clients"), stdin=PIPE, stdout=PIPE
    )
    assert clients.stdin is not None
    assert clients.stdout is not None
    clients.stdin.write(plan.model_dump_json().encode() + b"\n")
    await clients.stdin.drain()
    return clients, await clients.stdout.readline()


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
