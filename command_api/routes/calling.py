"""Who calls, and whether they may: every route that depends on this is closed to strangers."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from command_api.auth.tokens import Principal
from command_api.domain.errors import Forbidden
from command_api.routes.parts import Parts, PartsOfRequest

_BEARER = HTTPBearer(auto_error=False, scheme_name="access_token", bearerFormat="JWT")


async def _caller(
    request: Request,
    parts: PartsOfRequest,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> Principal:
    known: Principal | None = getattr(request.state, "caller", None)
    return known or parts.tokens.verify(None if credentials is None else credentials.credentials)


class ClosedRoute(APIRoute):
    """Turns strangers away before their body is read, which FastAPI does before any dependency."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def recognise(request: Request) -> Response:
            parts: Parts = request.app.state.parts
            credentials = await _BEARER(request)
            request.state.caller = parts.tokens.verify(credentials.credentials if credentials else None)
            return await handle(request)

        return recognise


CallerOfRequest = Annotated[Principal, Depends(_caller)]


def needs(scope: str) -> Any:
    """A dependency that lets only callers with this scope pass."""

    async def check(caller: CallerOfRequest) -> None:
        if scope not in caller.scopes:
            raise Forbidden(f"your access token lacks the scope {scope}", code="missing_scope")

    return Depends(check)
