"""The workspace's credentials for places outside: stored, listed without their values, deleted."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel

from command_api.credentials.secrets import SecretGoneRow, SecretPlace
from command_api.routes.calling import ClosedRoute, needs
from command_api.routes.commanding import Asking, AskingOfRequest
from command_api.routes.problem_docs import COMMAND, QUERY, problems
from command_api.routes.reading import Page, ReadingOfRequest
from schemas.api import SecretBody
from schemas.commands.identity import DeleteSecret, StoreSecret
from schemas.secrets import SecretKind, SecretName

router = APIRouter(
    prefix="/secrets", tags=["secrets"], dependencies=[needs("org:admin")], route_class=ClosedRoute
)

NameInPath = Annotated[SecretName, Path(description="Lower-case letters, digits, dot, dash, underscore.")]


class SecretShown(BaseModel):
    """A secret without its value."""

    name: str
    kind: SecretKind
    created_at: datetime
    updated_at: datetime
    last_used_at: datetime | None


class SecretCommanded(SecretShown):
    """A secret after a command."""

    command_id: str


def _place(name: str, asking: Asking) -> SecretPlace:
    caller = asking.caller
    return SecretPlace(caller.organization_id, caller.workspace_id, name)


@router.put(
    "/{name}",
    operation_id="secrets_store",
    response_model=SecretCommanded,
    responses=problems(*COMMAND),
    openapi_extra={"x-emits": ["kinora.organization.secret_stored"]},
    summary="Store or replace a credential, encrypted; nothing ever answers its value",
)
async def store(name: NameInPath, body: SecretBody, asking: AskingOfRequest) -> dict[str, Any]:
    place = _place(name, asking)
    command = StoreSecret(
        organization_id=place.organization_id, workspace_id=place.workspace_id, name=name, kind=body.kind
    )
    secrets = asking.parts.secrets
    await asking.execute(command, body, rows=(secrets.row(place, body),))
    found = await secrets.find(place)
    return {
        **{field: getattr(found, field) for field in SecretShown.model_fields},
        "command_id": asking.command_id,
    }


@router.get(
    "",
    operation_id="secrets_list",
    response_model=Page[SecretShown],
    responses=problems(*QUERY),
    summary="Names and kinds of the workspace's secrets, never their values",
)
async def list_secrets(reading: ReadingOfRequest) -> dict[str, Any]:
    await reading.from_log()
    found = await reading.parts.secrets.told(reading.organization_id, reading.workspace_id)
    return reading.answer(
        [{field: getattr(each, field) for field in SecretShown.model_fields} for each in found], None
    )


@router.delete(
    "/{name}",
    operation_id="secrets_delete",
    status_code=204,
    responses=problems(*COMMAND),
    openapi_extra={"x-emits": ["kinora.organization.secret_deleted"]},
    summary="Delete a credential",
)
async def delete(name: NameInPath, asking: AskingOfRequest) -> Response:
    place = _place(name, asking)
    command = DeleteSecret(organization_id=place.organization_id, workspace_id=place.workspace_id, name=name)
    await asking.execute(command, rows=(SecretGoneRow(place),))
    return asking.no_content()
