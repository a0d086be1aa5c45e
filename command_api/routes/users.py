"""Persons, as far as they are not their own log-in: forgetting them."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from command_api.auth.tokens import ERASE
from command_api.domain.errors import Invalid
from command_api.routes.calling import ClosedRoute, needs
from command_api.routes.commanding import AskingOfRequest
from command_api.routes.problem_docs import COMMAND, problems
from schemas.api import EraseBody
from schemas.ids import UserId

router = APIRouter(prefix="/users", tags=["users"], route_class=ClosedRoute)


class Erased(BaseModel):
    """What is left of a person."""

    id: str
    status: str
    command_id: str


@router.post(
    "/{user_id}/erase",
    dependencies=[needs(ERASE)],
    operation_id="users_erase",
    response_model=Erased,
    responses=problems(*COMMAND),
    openapi_extra={"x-emits": ["kinora.user.erased", "kinora.organization.member_removed"]},
    summary="Forget a person for good: yourself, or as an operator anybody",
)
async def erase(user_id: UserId, body: EraseBody, asking: AskingOfRequest) -> dict[str, Any]:
    if body.confirm != user_id:
        raise Invalid.field(
            "/confirm",
            "not_confirmed",
            f"confirm is {body.confirm!r}; repeat {user_id}: nobody can undo this",
        )
    outcome = await asking.parts.erasure.erase(user_id, asking.caller, asking.context(body))
    asking.mark(outcome)
    return {"id": user_id, "status": "erased", "command_id": asking.command_id}
