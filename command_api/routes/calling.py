"""Who calls, and whether they may: every route that depends on this is closed to strangers."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any

import structlog
from fastapi import Depends, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from command_api.auth.errors import AuthError
from command_api.auth.tokens import Principal
from command_api.domain.errors import Forbidden, Invalid
from command_api.rates import Bucket, Standing
from command_api.routes.origins import address
from command_api.routes.parts import Parts, PartsOfRequest
from schemas.naming import instead_of

RATE_LIMIT = "x-rate-limit"
"""Where a route names its quota; it stands in the OpenAPI document, too."""

_BEARER = HTTPBearer(auto_error=False, scheme_name="access_token", bearerFormat="JWT")


async def _caller(
    request: Request,
    parts: PartsOfRequest,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> Principal:
    known: Principal | None = getattr(request.state, "caller", None)
    return known or _recognised(parts, credentials)


def _recognised(parts: Parts, credentials: HTTPAuthorizationCredentials | None) -> Principal:
    return _bound(parts.tokens.verify(None if credentials is None else credentials.credentials))


def _bound(caller: Principal) -> Principal:
    structlog.contextvars.bind_contextvars(organization_id=caller.organization_id, actor=caller.user_id)
    return caller


_OF_EVERY_READ = ("min_position",)
"""Taken by reads that do not name it, too: what they read is never behind."""


class StrictRoute(APIRoute):
    """Refuses query parameters that it does not have: a misspelled filter would find everything."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, named = super().get_route_handler(), sorted(_query_parameters(self.dependant))

        async def check(request: Request) -> Response:
            taken = {*named, *(_OF_EVERY_READ if request.method == "GET" else ())}
            for name in request.query_params:
                if name not in taken:
                    raise _unknown_parameter(name, named)
                if (times := len(request.query_params.getlist(name))) > 1:
                    # All but one would be ignored, and nobody would notice.
                    message = f"{name} is given {times} times; give it once, a list with commas"
                    raise Invalid.field(f"/query/{name}", "repeated_parameter", message)
            return await handle(request)

        return check


def _query_parameters(dependant: Dependant) -> set[str]:
    own = {field.alias for field in dependant.query_params}
    return own.union(*(_query_parameters(inner) for inner in dependant.dependencies))


def _unknown_parameter(name: str, named: Sequence[str]) -> Invalid:
    shown = ascii(name[:60])
    message = f"there is no query parameter {shown}{instead_of(name, named)}"
    pointer = shown[1:-1].replace("~", "~0").replace("/", "~1")
    return Invalid.field(f"/query/{pointer}", "unknown_parameter", message)


class OpenRoute(StrictRoute):
    """Takes strangers. Each address has a quota, of the bucket that the route names in `x-rate-limit`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        bucket: Bucket = (self.openapi_extra or {}).get(RATE_LIMIT, "anonymous")

        async def count(request: Request) -> Response:
            await spend(request, bucket, address(request))
            return await handle(request)

        return count


class ClosedRoute(StrictRoute):
    """Turns strangers away, and callers whose quota is spent, before their body is read.

    FastAPI would read it before any dependency. A caller's general quota always counts, and that of the
    bucket which the route names in `x-rate-limit`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        bucket: Bucket | None = (self.openapi_extra or {}).get(RATE_LIMIT)

        async def recognise(request: Request) -> Response:
            try:
                caller = await self.caller_of(request)
            except AuthError:
                await spend(request, "anonymous", address(request))
                raise
            await spend(request, "general", caller.user_id)
            if bucket is not None:
                await spend(request, bucket, caller.user_id)
            request.state.caller = caller
            return await handle(request)

        return recognise

    async def caller_of(self, request: Request) -> Principal:
        """Who asks.

        Raises:
            AuthError: nobody who is known here.
        """
        return _recognised(request.app.state.parts, await _BEARER(request))


class TicketRoute(ClosedRoute):
    """A closed route that takes a ticket, too, from whoever cannot send a header."""

    async def caller_of(self, request: Request) -> Principal:
        ticket = request.query_params.get("ticket")
        if ticket is None or "authorization" in request.headers:
            return await super().caller_of(request)
        parts: Parts = request.app.state.parts
        return _bound(await parts.tickets.redeem(ticket))


async def spend(request: Request, bucket: Bucket, *key: str) -> None:
    """Count the request against a quota; the answer says what is left of it.

    Raises:
        TooManyRequests: nothing was left.
    """
    parts: Parts = request.app.state.parts
    tell(request, await parts.rates.take(bucket, *key))


def tell(request: Request, standings: Sequence[Standing]) -> None:
    """Say in the answer what is left of these quotas."""
    request.state.standings = [*getattr(request.state, "standings", ()), *standings]


CallerOfRequest = Annotated[Principal, Depends(_caller)]


def needs(scope: str) -> Any:
    """A dependency that lets only callers with this scope pass."""

    async def check(caller: CallerOfRequest) -> None:
        if scope not in caller.scopes:
            raise Forbidden(f"your access token lacks the scope {scope}", code="missing_scope")

    return Depends(check)
