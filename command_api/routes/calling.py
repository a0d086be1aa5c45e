"""Who calls, and whether they may: every route that depends on this is closed to strangers."""

from typing import Annotated, Any

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from command_api.auth.tokens import Principal
from command_api.domain.errors import Forbidden
from command_api.routes.parts import PartsOfRequest

_BEARER = HTTPBearer(auto_error=False, scheme_name="access_token", bearerFormat="JWT")


async def _caller(
    parts: PartsOfRequest, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> Principal:
    return parts.tokens.verify(None if credentials is None else credentials.credentials)


CallerOfRequest = Annotated[Principal, Depends(_caller)]


def needs(scope: str) -> Any:
    """A dependency that lets only callers with this scope pass."""

    async def check(caller: CallerOfRequest) -> None:
        if scope not in caller.scopes:
            raise Forbidden(f"your access token lacks the scope {scope}", code="missing_scope")

    return Depends(check)
