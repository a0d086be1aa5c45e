"""Places in our code where a process dies, or stops for a while, just when it matters most.

A kill from outside hits the moment between two statements once in a thousand times; here it is chosen. A
failpoint wraps a function that right and faulty code call alike, so the right code meets the same trouble. It
strikes by seeded chance, and only while the folder of `FOLDER_VARIABLE` holds `armed`; each time it leaves
a line in `strikes`, for a control that nothing struck would prove nothing.
"""

import asyncio
import functools
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock
from zlib import crc32

from nats.js.api import StreamConfig

from command_api.eventlog import recorder
from command_api.eventlog.recorder import LogRecorder
from command_api.feed.subscription import Subscription
from command_api.messaging import relay, topology
from command_api.messaging.relay import Relay
from kinora.roles import Role
from projections import catalogue, runner
from projections.tail import LogTail
from projections.views.datasets import Datasets
from schemas.envelope import Recorded
from schemas.events.dataset import DatasetRegistered
from tests.simulation.rewriting import Patch

FOLDER_VARIABLE = "KINORA_TEST_FAILPOINTS"
SEED_VARIABLE = "KINORA_TEST_FAILPOINTS_SEED"
FROZEN_SECONDS = 6.0

_chance = random.Random()


@dataclass(frozen=True)
class Failpoint:
    """One of them."""

    name: str
    patch: Patch
    strikes: bool = True
    """Whether it strikes by chance; else it is how things are all the time."""
    role: Role | None = None
    """Of the processes that have it; None for all."""


def environment(folder: Path, seed: int) -> dict[str, str]:
    """What processes with failpoints have to be given."""
    return {FOLDER_VARIABLE: str(folder), SEED_VARIABLE: str(seed)}


def seed_chance(role: str) -> None:
    """Chance is the same for the same seed, role and number of earlier strikes."""
    earlier = len(strikes(Path(os.environ[FOLDER_VARIABLE])))
    _chance.seed(f"{os.environ[SEED_VARIABLE]} {role} {earlier}")


def arm(folder: Path) -> None:
    (folder / "armed").touch()


def disarm(folder: Path) -> None:
    (folder / "armed").unlink(missing_ok=True)


def strikes(folder: Path) -> list[str]:
    """The names of the failpoints that struck so far."""
    try:
        return (folder / "strikes").read_text().split()
    except FileNotFoundError:
        return []


def _strikes(name: str, odds: float) -> bool:
    folder = Path(os.environ[FOLDER_VARIABLE])
    if not (folder / "armed").exists() or _chance.random() >= odds:
        return False
    with (folder / "strikes").open("a") as file:
        file.write(f"{name}\n")
    return True


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(owner: type | ModuleType, name: str, strike: Callable[..., Awaitable[None] | None]) -> Patch:
    """`owner.name`, with `strike` called before it with the same arguments."""
    original: Any = getattr(owner, name)
    if asyncio.iscoroutinefunction(original):

        @functools.wraps(original)
        async def wrapped(*args: Any, **options: Any) -> Any:
            pending = strike(*args, **options)
            if pending is not None:
                await pending
            return await original(*args, **options)

        return lambda: mock.patch.object(owner, name, wrapped)

    @functools.wraps(original)
    def plain(*args: Any, **options: Any) -> Any:
        strike(*args, **options)
        return original(*args, **options)

    return lambda: mock.patch.object(owner, name, plain)


def _after(owner: type | ModuleType, name: str, strike: Callable[[Any], Awaitable[None] | None]) -> Patch:
    """`owner.name`, with `strike` called behind it with what it returned."""
    original: Any = getattr(owner, name)
    if asyncio.iscoroutinefunction(original):

        @functools.wraps(original)
        async def wrapped(*args: Any, **options: Any) -> Any:
            result = await original(*args, **options)
            pending = strike(result)
            if pending is not None:
                await pending
            return result

        return lambda: mock.patch.object(owner, name, wrapped)

    @functools.wraps(original)
    def plain(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        strike(result)
        return result

    return lambda: mock.patch.object(owner, name, plain)


# ---- appending ------------------------------------------------------------------------------------


def _before_commit(_result: object) -> None:
    if _strikes("slow_commit", 0.2):
        time.sleep(_chance.uniform(0.05, 0.15))


slow_commit = Failpoint("slow_commit", _after(LogRecorder, "_insert", _before_commit))
"""The writer stops between drawing positions and COMMIT."""


def _at_command_rows(_events: int, entries: Sequence[object]) -> None:
    if entries and _strikes("killed_at_command_row", 0.05):
        _die()


killed_at_command_row = Failpoint(
    "killed_at_command_row", _before(recorder, "_command_columns", _at_command_rows)
)
"""The process dies when the events are on their way and the command row is not."""

# ---- projecting -----------------------------------------------------------------------------------


def _at_fold(*_: object) -> None:
    if _strikes("killed_before_rows", 0.02):
        _die()


killed_before_rows = Failpoint("killed_before_rows", _before(runner, "fold", _at_fold))
"""The process dies before a page's rows are written."""


def _at_checkpoint(*_: object) -> None:
    if _strikes("killed_before_checkpoint", 0.02):
        _die()


killed_before_checkpoint = Failpoint("killed_before_checkpoint", _before(catalogue, "move", _at_checkpoint))
"""The process dies when a page's rows are written and its checkpoint is not."""


def _poison(_view: Datasets, _before: object, recorded: Recorded) -> None:
    # Always the same streams: a page that fails is folded once more, event by event.
    registers = isinstance(recorded.event, DatasetRegistered)
    if registers and crc32(recorded.stream_id.encode()) % 4 == 0 and _strikes("unfoldable", 1.0):
        raise ValueError("an event that this release cannot fold")


unfoldable = Failpoint("unfoldable", _before(Datasets, "fold", _poison), role="projections")
"""Some events cannot be folded: their streams are parked, until somebody replays them.

The API, which folds to show what it made, is spared.
"""

# ---- relaying -------------------------------------------------------------------------------------

_events_config = topology.events_config


def _forgetful(max_bytes: int) -> StreamConfig:
    config = _events_config(max_bytes)
    config.duplicate_window = 0.2
    return config


short_memory = Failpoint(
    "short_memory", lambda: mock.patch.object(topology, "events_config", _forgetful), strikes=False
)
"""JetStream knows a message id again for 0.2 s only: as if everything took 600 times as long."""

one_by_one = Failpoint("one_by_one", lambda: mock.patch.object(relay, "BATCH_EVENTS", 1), strikes=False)
"""The relay publishes every event by itself."""


def _frozen(*_: object) -> None:
    if _strikes("frozen_before_publish", 0.05):
        time.sleep(FROZEN_SECONDS)


frozen_before_publish = Failpoint("frozen_before_publish", _before(Relay, "_one", _frozen))
"""The whole process stops just before a message is sent, as by SIGSTOP, and goes on later."""

# ---- following ------------------------------------------------------------------------------------


async def _looked(_result: object) -> None:
    if _strikes("slow_after_look", 1.0):
        await asyncio.sleep(3.0)


slow_after_look = Failpoint("slow_after_look", _after(LogTail, "_wake", _looked))
"""The tail's task stops after each look at the log."""


async def _looks(*_: object) -> None:
    if _strikes("slow_look", 0.5):
        await asyncio.sleep(0.5)


slow_look = Failpoint("slow_look", _before(LogTail, "_wake", _looks))
"""The tail is late, so that those who begin to follow read pages."""


async def _read(rows: Sequence[object]) -> None:
    if not rows and _strikes("slow_after_last_page", 1.0):
        await asyncio.sleep(1.5)


slow_after_last_page = Failpoint("slow_after_last_page", _after(Subscription, "_page", _read))
"""A subscription's task stops when it has read the log's last page."""
