"""Who calls: every route that depends on this is closed to strangers."""

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from command_api.identity import Caller
from command_api.problems import Unauthenticated
from command_api.routes.parts import PartsOfRequest

_BEARER = HTTPBearer(auto_error=False, scheme_name="access_token", bearerFormat="JWT")


async def _caller(
    parts: PartsOfRequest, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> Caller:
    if credentials is None:
        raise Unauthenticated("no access token was sent; log in and send it as `Authorization: Bearer …`")
    return await parts.authenticate(credentials.credentials)


CallerOfRequest = Annotated[Caller, Depends(_caller)]
