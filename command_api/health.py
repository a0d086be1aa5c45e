"""Looks at every part that the service needs: what answers, what is missing, and what follows from it."""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from psycopg import AsyncConnection, errors
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

from command_api.feed.telemetry import TelemetryHub
from command_api.objects import ObjectStore
from projections.catalogue import ViewStatus, statuses
from projections.reader import read_head
from projections.views.agents import Node, fleet
from projections.views.models import count_ready

CHECK_SECONDS = 2.0
KEPT_SECONDS = 1.0
"""Anybody may ask, as often as they like; the parts are asked once in this time."""
LEAST_DISK_BYTES = 512 * 2**20
"""Below it the log, the streams and the object store may soon be unable to grow."""
MOST_LAG = 10_000
"""Events that a read model may be behind before what it shows misleads; a rebuild catches up in seconds."""

_DEVICE_LETTERS = 60
"""What a node calls its device is its own choice, and this is read by everybody."""
_GIB = 2**30


class PartHealth(BaseModel):
    """One part."""

    ok: bool
    required: bool
    """Whether the service is unready without it; the others only make it less useful."""
    detail: str


@dataclass(frozen=True, slots=True)
class Found:
    """Everything at one moment."""

    head: int = 0
    lags: dict[str, int] = field(default_factory=dict)
    parts: dict[str, PartHealth] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return all(part.ok for part in self.parts.values() if part.required)


@dataclass
class HealthCheck:
    """Checks all parts at once, and remembers the answer for a moment."""

    pool: AsyncConnectionPool[AsyncConnection]
    store: ObjectStore
    telemetry: TelemetryHub
    disk: Path | None
    _found: Found = field(default_factory=Found)
    _until: float = 0.0
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self) -> Found:
        """What is there now."""
        async with self._asking:
            if time.monotonic() >= self._until:
                self._found = await self._look()
                self._until = time.monotonic() + KEPT_SECONDS
            return self._found

    async def _look(self) -> Found:
        (head, lags, of_database), object_store = await asyncio.gather(self._database(), self._store())
        connected = self.telemetry.connected
        return Found(
            head,
            lags,
            {
                "api": _required(True, "answers"),
                "postgres": of_database["postgres"],
                "object_store": object_store,
                "projections": of_database["projections"],
                "model_registry": of_database["model_registry"],
                "disk": self._disk(),
                "nats": _useful(connected, "connected" if connected else "not connected; trying again"),
                "agents": of_database["agents"],
                "gpu": of_database["gpu"],
                "inference_engine": _useful(True, "not configured"),
            },
        )

    async def _database(self) -> tuple[int, dict[str, int], dict[str, PartHealth]]:
        try:
            async with asyncio.timeout(CHECK_SECONDS), self.pool.connection() as connection:
                head, views = await read_head(connection), await statuses(connection)
                lags = {view.view: max(0, head - view.position) for view in views}
                return (
                    head,
                    lags,
                    {
                        "postgres": _required(True, "answers"),
                        "projections": _projections(lags, views),
                        "model_registry": await _registry(connection),
                        **await _agents(connection),
                    },
                )
        except Exception as error:  # noqa: BLE001 (a health check says what is wrong, whatever it is)
            unknown = "unknown while the database does not answer"
            parts = {"postgres": _required(False, type(error).__name__)}
            parts |= {name: _required(False, unknown) for name in ("projections", "model_registry")}
            return 0, {}, parts | {name: _useful(False, unknown) for name in ("agents", "gpu")}

    async def _store(self) -> PartHealth:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self.store.check()
        except Exception as error:  # noqa: BLE001 (as above)
            return _required(False, type(error).__name__)
        return _required(True, "answers")

    def _disk(self) -> PartHealth:
        if self.disk is None:
            return _required(True, "not on this machine")
        free = shutil.disk_usage(self.disk).free
        return _required(free >= LEAST_DISK_BYTES, f"{free / _GIB:.1f} GiB free")


def _required(ok: bool, detail: str) -> PartHealth:
    return PartHealth(ok=ok, required=True, detail=detail)


def _useful(ok: bool, detail: str) -> PartHealth:
    return PartHealth(ok=ok, required=False, detail=detail)


def _projections(lags: dict[str, int], views: Sequence[ViewStatus]) -> PartHealth:
    if not lags:
        return _required(False, "never ran; start `kinora projections`")
    view, lag = max(lags.items(), key=lambda each: each[1])
    parked = sum(status.parked_streams for status in views)
    waiting = f"; {parked} streams are parked" if parked else ""
    if lag > MOST_LAG:
        return _required(False, f"{view} is {lag} events behind{waiting}")
    return _required(True, f"at most {lag} events behind{waiting}")


async def _registry(connection: AsyncConnection) -> PartHealth:
    try:
        ready = await count_ready(connection)
    except errors.UndefinedTable:
        return _required(False, "its read model does not exist yet; start `kinora projections`")
    return _required(True, f"readable, {ready} models ready")


async def _agents(connection: AsyncConnection) -> dict[str, PartHealth]:
    try:
        nodes = await fleet(connection)
    except errors.UndefinedTable:
        missing = _useful(False, "the read model of agents does not exist yet")
        return {"agents": missing, "gpu": missing}
    online = [node for node in nodes if node.online]
    working = any(node.four_bit_kernel for node in online)
    detail = f"{len(online)} of {len(nodes)} online{_devices(online)}"
    if online and not working:
        detail += "; none has a working 4-bit kernel"
    gpus = [node for node in online if node.gpu_memory_bytes]
    room = sum(node.gpu_memory_bytes for node in gpus)
    gpu = f"{len(gpus)} online, {room / _GIB:.0f} GiB together" if gpus else "none online; trainings use CPUs"
    # Without a GPU everything works, only slowly.
    return {"agents": _useful(working, detail), "gpu": _useful(True, gpu)}


def _devices(nodes: Sequence[Node]) -> str:
    described = Counter(
        f"{node.device[:_DEVICE_LETTERS]} with {(node.gpu_memory_bytes or node.memory_bytes) / _GIB:.0f} GiB"
        for node in nodes
    )
    named = [f"{device} × {number}" if number > 1 else device for device, number in described.most_common(5)]
    return f" ({', '.join(named)}{', …' if len(described) > 5 else ''})" if named else ""
