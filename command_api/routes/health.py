"""Whether the service works, part by part; open to everybody and free of secrets."""

import asyncio
from importlib.metadata import version

from fastapi import APIRouter, Response
from pydantic import BaseModel

from command_api.routes.calling import OpenRoute
from command_api.routes.parts import Parts, PartsOfRequest
from projections.catalogue import statuses
from projections.reader import read_head

router = APIRouter(tags=["health"], route_class=OpenRoute)

CHECK_SECONDS = 2.0


class PartHealth(BaseModel):
    """One part."""

    ok: bool
    detail: str


class Health(BaseModel):
    """The whole service."""

    status: str
    """`ok`, or `degraded` when a part is missing; 503 when nothing can be served."""
    version: str
    instance_id: str
    """Of this process; new at each start."""
    log_id: str
    position: int
    parts: dict[str, PartHealth]
    projections: dict[str, int]
    """Lag of each read model, in events."""


@router.get(
    "/health", operation_id="health", response_model=Health, summary="Whether the service works, part by part"
)
async def health(parts: PartsOfRequest, response: Response) -> Health:
    (postgres, head, lags), store = await asyncio.gather(_postgres(parts), _store(parts))
    connected = parts.telemetry.connected
    nats = PartHealth(ok=connected, detail="connected" if connected else "not connected; trying again")
    behind = max(lags.values(), default=0)
    projecting = PartHealth(
        ok=bool(lags),
        detail=f"at most {behind} events behind" if lags else "never ran; start `kinora projections`",
    )
    found = {"postgres": postgres, "nats": nats, "object_store": store, "projections": projecting}
    if not postgres.ok:
        response.status_code = 503
    return Health(
        status="ok" if all(part.ok for part in found.values()) else "degraded",
        version=version("kinora"),
        instance_id=parts.instance_id,
        log_id=parts.log.log_id,
        position=head,
        parts=found,
        projections=lags,
    )


async def _postgres(parts: Parts) -> tuple[PartHealth, int, dict[str, int]]:
    try:
        async with asyncio.timeout(CHECK_SECONDS), parts.pool.connection() as connection:
            head = await read_head(connection)
            views = await statuses(connection)
    except Exception as error:  # noqa: BLE001 (a health check says what is wrong, whatever it is)
        return PartHealth(ok=False, detail=type(error).__name__), 0, {}
    return PartHealth(ok=True, detail="answers"), head, {v.view: max(0, head - v.position) for v in views}


async def _store(parts: Parts) -> PartHealth:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await parts.store.check()
    except Exception as error:  # noqa: BLE001 (as above)
        return PartHealth(ok=False, detail=type(error).__name__)
    return PartHealth(ok=True, detail="answers")
