"""What the auditor found and how far it has looked, for the operator: it concerns all organizations."""

from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from command_api.audit.sweeps import sweeps
from command_api.auth.tokens import OPERATE
from command_api.routes.calling import ClosedRoute, needs
from command_api.routes.problem_docs import QUERY, problems
from command_api.routes.reading import Limit, MinPosition, ReadingOfRequest
from projections.views.findings import Finding, findings

router = APIRouter(prefix="/audit", tags=["audit"], dependencies=[needs(OPERATE)], route_class=ClosedRoute)


class SweepShown(BaseModel):
    """One walk through everything."""

    name: str
    compared: int
    """In the round that is going on."""
    rounds: int
    """Whole ones."""
    updated_at: datetime
    finished_at: datetime | None
    """When the last whole round ended."""


class Audit(BaseModel):
    """Findings, newest first, and the walks that made them."""

    data: list[Finding]
    sweeps: list[SweepShown]


@router.get(
    "/findings",
    operation_id="audit_findings",
    response_model=Audit,
    responses=problems(*QUERY),
    summary="Where stream or read models differ, or differed, from the log",
)
async def list_findings(
    reading: ReadingOfRequest,
    limit: Limit = 50,
    status: Literal["open", "resolved"] | None = None,
    min_position: MinPosition = None,
) -> dict[str, Any]:
    await reading.fresh("findings", min_position)
    async with reading.parts.pool.connection() as connection:
        found = await findings(connection, status=status, limit=limit)
        walks = await sweeps(connection)
    shown = [
        {
            "name": each.sweep,
            "compared": each.compared,
            "rounds": each.rounds,
            "updated_at": each.updated_at,
            "finished_at": each.finished_at,
        }
        for each in walks
    ]
    return {"data": found, "sweeps": shown}
