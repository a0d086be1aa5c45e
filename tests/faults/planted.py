"""Known faults in real processes: the trouble that brings each to light, and the rules by which it shows.

Each is tried twice on one control plane. First the right code meets the trouble, and may break nothing: what
shows afterwards is the fault and no false alarm. Then every process has the fault, and meets the same
trouble until one of the rules is broken.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx
import psycopg
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from kinora.roles import Role
from tests.faults import failpoints
from tests.faults.judging import PATIENCE_SECONDS, filled_anew, filling, held_up, judge
from tests.faults.plane import ROLE_OF, Name, Plane, wired_plane
from tests.faults.traffic import FRAMES, AnyRule, Finding, Run, Traffic, sign_up
from tests.simulation.mutations import MUTATIONS
from tests.simulation.rewriting import Patch

LIMIT_SECONDS = 120.0
"""No round with the fault begins later than so long after the first."""
CONTROL_ROUNDS = 4
"""At most, until every failpoint has struck the right code: else the control would prove nothing."""

STRIKES = 2
STRIKING_SECONDS = 15.0
"""A round waits for so many strikes, but not for longer."""

UNJUDGED = (AssertionError, OSError, httpx.HTTPError, psycopg.Error, NatsError, APIError)
"""What keeps a round from being judged, for the code is too faulty: no rule is broken by that."""

Torment = Callable[[Plane, random.Random], Awaitable[None]]
Code = Literal["right", "faulty"]


@dataclass(frozen=True)
class Planted:
    """One known fault."""

    name: str
    """As in `tests.simulation.mutations`."""
    rules: frozenset[AnyRule]
    """Any of them shows it."""
    names: tuple[Name, ...]
    """The processes that it takes."""
    torment: Torment
    """What happens while callers call."""
    points: tuple[failpoints.Failpoint, ...] = ()
    patience: float = PATIENCE_SECONDS
    """How long whatever follows the log may take to reach its end."""
    frames: int = FRAMES
    """After so many since it caught up the reader of the feed connects anew."""
    parks: bool = False
    """Whether views set streams aside for the trouble; an operator replays them before all is judged."""

    def patches(self, role: Role, *, faulty: bool) -> tuple[Patch, ...]:
        """What is done to the code of a process of that role."""
        points = tuple(point.patch for point in self.points if point.role in (None, role))
        (mutation,) = (each for each in MUTATIONS if each.name == self.name)
        return (*points, *mutation.patches) if faulty else points


@dataclass
class Search:
    """What came of one."""

    planted: Planted
    false_alarms: list[Finding] = field(default_factory=list)
    """What the right code broke."""
    unmet: frozenset[str] = frozenset()
    """Failpoints that never struck the right code."""
    found: Finding | None = None
    other: list[str] = field(default_factory=list)
    """What else the faulty code broke in the last round."""
    seconds: float = 0.0
    """From the faulty processes' start to the finding."""


async def search(planted: Planted, folder: Path, seed: int) -> Search:
    """Try one fault."""
    done = Search(planted)
    async with _stage(planted, folder, seed) as stage:
        strikes = frozenset(point.name for point in planted.points if point.strikes)
        for _ in range(CONTROL_ROUNDS):
            done.false_alarms = await stage.round()
            done.unmet = strikes - set(failpoints.strikes(stage.armory))
            if done.false_alarms:
                return done
            if not done.unmet:
                break
        began = time.monotonic()
        await stage.recast("faulty")
        while done.found is None and time.monotonic() - began < LIMIT_SECONDS:
            broken = await stage.round()
            done.found = next((each for each in broken if each.rule in planted.rules), None)
            done.other = sorted({each.rule for each in broken if each is not done.found})
        done.seconds = time.monotonic() - began
    return done


@dataclass
class _Stage:
    """One control plane, its callers and its reader."""

    planted: Planted
    plane: Plane
    http: httpx.AsyncClient
    run: Run
    traffic: Traffic
    chance: random.Random
    armory: Path

    async def recast(self, code: Code) -> None:
        """The same plane, with processes of other code."""
        await self.plane.end()
        place = str(PLANTED.index(self.planted))
        self.plane.program = lambda name: ("tests.faults.mutant", place, code, ROLE_OF[name])
        await self.plane.start_all()

    async def round(self) -> list[Finding]:
        """Some seconds of trouble, and what was broken by then."""
        try:
            return await self._round()
        except UNJUDGED as error:
            return [Finding("not_judged", f"{type(error).__name__}: {str(error)[-300:]}")]

    async def _round(self) -> list[Finding]:
        before = await filling(self.plane)
        supervisor = asyncio.create_task(self.plane.revive())
        try:
            async with self.traffic.callers():
                failpoints.arm(self.armory)
                await self.planted.torment(self.plane, self.chance)
            failpoints.disarm(self.armory)
            await asyncio.sleep(0.2)  # whoever was about to die has died
        finally:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        await self.plane.all_ready()
        early: list[Finding] = []
        if self.planted.parks:
            early = await held_up(self.http, self.planted.patience)
            await _replay(self.http)
        broken = await judge(self.plane, self.http, self.run, self.planted.patience)
        return [*self.run.broken, *early, *broken, *filled_anew(before, await filling(self.plane))]


@asynccontextmanager
async def _stage(planted: Planted, folder: Path, seed: int) -> AsyncIterator[_Stage]:
    chance = random.Random(f"{seed} {planted.name}")
    async with wired_plane(folder, planted.names) as plane:
        armory = plane.servers.folder.run / "failpoints"
        armory.mkdir(parents=True)
        plane.environment = failpoints.environment(armory, seed)
        async with httpx.AsyncClient(base_url=plane.urls[0], trust_env=False, timeout=10) as http:
            run = Run(seed)
            stage = _Stage(planted, plane, http, run, Traffic(plane, http, run, chance), chance, armory)
            try:
                await stage.recast("right")
                await sign_up(http)
                async with stage.traffic.reader(planted.frames):
                    yield stage
            finally:
                await plane.end()


async def _replay(http: httpx.AsyncClient) -> None:
    """What an operator does once the release can fold the events: `kinora projections replay datasets`."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        parked = await http.get("/api/v1/projections/parked")
        if parked.status_code == 200 and not parked.json()["data"]:
            return
        await http.post("/api/v1/projections/datasets/replay")
        await asyncio.sleep(0.2)


# ---- trouble --------------------------------------------------------------------------------------


def _until_struck(point: failpoints.Failpoint) -> Torment:
    """Nothing from outside, while the failpoint strikes a few times."""

    async def torment(plane: Plane, _chance: random.Random) -> None:
        armory = Path(plane.environment[failpoints.FOLDER_VARIABLE])
        wanted = failpoints.strikes(armory).count(point.name) + STRIKES
        await asyncio.sleep(2.0)
        for _ in range(int(STRIKING_SECONDS / 0.05)):
            if failpoints.strikes(armory).count(point.name) >= wanted:
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)

    return torment


async def _deafen(plane: Plane, _chance: random.Random) -> None:
    """No notification reaches the orchestrator any more."""
    await asyncio.sleep(1.0)
    plane.database["orchestrator"].mute = True
    await asyncio.sleep(1.0)


async def _cut_database(plane: Plane, _chance: random.Random) -> None:
    """The API's tail has to connect anew, and callers fall silent while it does."""
    await plane.database["api"].cut()
    await asyncio.sleep(1.2)


async def _kill_orchestrator(plane: Plane, _chance: random.Random) -> None:
    await asyncio.sleep(1.5)
    plane.processes["orchestrator"].kill()  # the supervisor starts it again
    await asyncio.sleep(0.5)


async def _lose_commits(plane: Plane, chance: random.Random) -> None:
    for _ in range(4):
        plane.database["api"].swallow("commit", chance.randint(1, 2))
        await asyncio.sleep(1.0)


async def _wipe(plane: Plane, _chance: random.Random) -> None:
    await asyncio.sleep(1.0)
    await plane.wipe_broker()
    await asyncio.sleep(1.0)


async def _usurp(plane: Plane, _chance: random.Random) -> None:
    """While a relay is frozen, another becomes the active one."""
    armory = Path(plane.environment[failpoints.FOLDER_VARIABLE])
    failpoints.disarm(armory)
    await plane.standing_by()
    failpoints.arm(armory)
    struck, deadline = len(failpoints.strikes(armory)), time.monotonic() + 15
    while len(failpoints.strikes(armory)) == struck:
        assert time.monotonic() < deadline, "no relay was frozen"
        await asyncio.sleep(0.05)
    failpoints.disarm(armory)
    for name in plane.names:
        if name != "api":
            await plane.database[name].cut()
    await asyncio.sleep(failpoints.FROZEN_SECONDS)


APPENDING: tuple[Name, ...] = ("api", "api-2", "orchestrator")
RELAYING: tuple[Name, ...] = ("api", "orchestrator")
PROJECTING: tuple[Name, ...] = ("api", "orchestrator", "projections")

PLANTED = (
    Planted(
        "appends do not lock the table",
        frozenset({"order_in_time", "seen_gap", "seen_out_of_order", "stream_differs"}),
        APPENDING,
        _until_struck(failpoints.slow_commit),
        (failpoints.slow_commit,),
        patience=15,
    ),
    Planted(
        "a checkpoint is committed before its rows",
        frozenset({"view_differs", "view_parked"}),
        PROJECTING,
        _until_struck(failpoints.killed_before_rows),
        (failpoints.killed_before_rows,),
    ),
    Planted(
        "a checkpoint is committed after its rows",
        frozenset({"view_parked", "view_differs"}),
        PROJECTING,
        _until_struck(failpoints.killed_before_checkpoint),
        (failpoints.killed_before_checkpoint,),
    ),
    Planted(
        "the relay's wake-up has no poll behind it",
        frozenset({"stream_stuck"}),
        RELAYING,
        _deafen,
        patience=15,
    ),
    Planted(
        "the shared tail looks before it listens, and never again",
        frozenset({"feed_stuck", "seen_gap"}),
        RELAYING,
        _cut_database,
        (failpoints.slow_after_look,),
        patience=10,
        frames=10**9,
    ),
    Planted(
        "a second relay is not fenced",
        frozenset({"stream_hole", "stream_differs"}),
        (*RELAYING, "orchestrator-2"),
        _usurp,
        (failpoints.short_memory, failpoints.one_by_one, failpoints.frozen_before_publish),
    ),
    Planted(
        "the relay trusts JetStream's window and begins anew",
        frozenset({"stream_hole", "stream_differs"}),
        RELAYING,
        _kill_orchestrator,
        (failpoints.short_memory,),
    ),
    Planted(
        "the command row is written outside the transaction",
        frozenset({"event_of_nobody", "answer_differs", "command_twice"}),
        APPENDING,
        _until_struck(failpoints.killed_at_command_row),
        (failpoints.killed_at_command_row,),
    ),
    Planted(
        "a lost COMMIT is told as a conflict",
        frozenset({"false_conflict"}),
        RELAYING,
        _lose_commits,
    ),
    Planted(
        "the relay goes on from memory",
        frozenset({"stream_stuck", "stream_hole"}),
        RELAYING,
        _wipe,
        patience=20,
    ),
    Planted(
        "EVENTS is filled anew without a new epoch",
        frozenset({"refilled_without_epoch"}),
        RELAYING,
        _wipe,
    ),
    Planted(
        "the feed takes `reached` after reading the rows",
        frozenset({"seen_gap"}),
        RELAYING,
        _until_struck(failpoints.slow_after_last_page),
        (failpoints.slow_look, failpoints.slow_after_last_page),
        frames=4,
    ),
    Planted(
        "later events of a parked stream are applied",
        frozenset({"view_stuck", "view_differs", "view_parked"}),
        PROJECTING,
        _until_struck(failpoints.unfoldable),
        (failpoints.unfoldable,),
        patience=15,
        parks=True,
    ),
)
"""At least twelve; `tests/faults/test_planted.py` keeps the list honest."""
