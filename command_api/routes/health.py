"""Whether the service works, part by part; open to everybody, and free of secrets and names."""

from importlib.metadata import version

from fastapi import APIRouter, Response
from pydantic import BaseModel

from command_api.health import PartHealth
from command_api.routes.calling import OpenRoute
from command_api.routes.parts import PartsOfRequest

router = APIRouter(tags=["health"], route_class=OpenRoute)


class Health(BaseModel):
    """The whole service."""

    status: str
    """`ok`; `degraded` when a part is missing; `unready` when a required one is."""
    version: str
    instance_id: str
    """Of this process; new at each start."""
    log_id: str
    position: int
    parts: dict[str, PartHealth]
    projections: dict[str, int]
    """Lag of each read model, in events."""


class Live(BaseModel):
    """The process runs and answers; nothing else was looked at."""

    status: str


class Ready(BaseModel):
    """Whether requests can be served."""

    status: str
    """`ready` or `unready`."""
    reasons: dict[str, str]
    """The required parts that are missing, and why."""


@router.get(
    "/health", operation_id="health", response_model=Health, summary="Whether the service works, part by part"
)
async def health(parts: PartsOfRequest, response: Response) -> Health:
    found = await parts.health.look()
    if not found.parts["postgres"].ok:
        response.status_code = 503
    worst = "ok" if all(part.ok for part in found.parts.values()) else "degraded"
    return Health(
        status=worst if found.ready else "unready",
        version=version("kinora"),
        instance_id=parts.instance_id,
        log_id=parts.log.log_id,
        position=found.head,
        parts=found.parts,
        projections=found.lags,
    )


@router.get(
    "/health/live", operation_id="health_live", response_model=Live, summary="Whether the process answers"
)
async def live() -> Live:
    return Live(status="ok")


@router.get(
    "/health/ready",
    operation_id="health_ready",
    response_model=Ready,
    summary="Whether requests can be served: 503 with the reasons when not",
)
async def ready(parts: PartsOfRequest, response: Response) -> Ready:
    found = await parts.health.look()
    reasons = {name: part.detail for name, part in found.parts.items() if part.required and not part.ok}
    if reasons:
        response.status_code = 503
    return Ready(status="unready" if reasons else "ready", reasons=reasons)
