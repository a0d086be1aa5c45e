"""Signing up, logging in, and the tokens that follow; the only routes that take a password."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from command_api.auth.accounts import Session
from command_api.handlers.base import Context
from command_api.routes.calling import RATE_LIMIT, CallerOfRequest, ClosedRoute, OpenRoute, tell
from command_api.routes.commanding import IdempotencyKey, idempotency
from command_api.routes.origins import address
from command_api.routes.parts import Parts, PartsOfRequest
from command_api.routes.problem_docs import QUERY, problems
from schemas.api import LoginBody, RefreshBody, SignupBody
from schemas.ids import Prefix, new_id

router = APIRouter(tags=["auth"], route_class=OpenRoute)
own = APIRouter(tags=["auth"], route_class=ClosedRoute)
"""What is only for whoever has logged in."""


class Tokens(BaseModel):
    """What proves who you are; shown once."""

    access_token: str = Field(repr=False)
    token_type: str = "bearer"  # noqa: S105 (its kind, not a token)
    expires_in: int
    """Seconds that the access token lives."""
    refresh_token: str = Field(repr=False)
    refresh_expires_at: datetime
    user_id: str
    organization_id: str
    workspace_id: str


class Me(BaseModel):
    """The caller, as they signed up."""

    id: str
    username: str
    email: str
    organization_id: str
    workspace_id: str
    scopes: list[str]


@router.post(
    "/auth/signup",
    operation_id="auth_signup",
    status_code=201,
    response_model=Tokens,
    responses=problems(400, 409, 413, 415, 422, 503, 507),
    summary="Sign up; a personal organization with a workspace comes with it",
    openapi_extra={
        "x-emits": ["kinora.user.registered", "kinora.organization.created"],
        RATE_LIMIT: "signup",
    },
)
async def signup(
    body: SignupBody,
    request: Request,
    response: Response,
    parts: PartsOfRequest,
    idempotency_key: IdempotencyKey = None,
) -> Tokens:
    session = await parts.accounts.sign_up(body, _asked(request, parts, idempotency_key, body))
    return _tokens(session, response)


@router.post(
    "/auth/login",
    operation_id="auth_login",
    response_model=Tokens,
    responses=problems(400, 401, 413, 415, 422, 503, 507),
    summary="Log in with a user name or e-mail address; every login is a session of its own",
    openapi_extra={"x-emits": ["kinora.user.logged_in"], RATE_LIMIT: "login"},
)
async def login(
    body: LoginBody,
    request: Request,
    response: Response,
    parts: PartsOfRequest,
    idempotency_key: IdempotencyKey = None,
) -> Tokens:
    account, here = parts.accounts.account_digest(body.username), address(request)
    tell(request, await parts.attempts.begin(account, here))
    session = await parts.accounts.log_in(body, _asked(request, parts, idempotency_key, body))
    await parts.attempts.succeeded(account, here)
    return _tokens(session, response)


@router.post(
    "/auth/refresh",
    operation_id="auth_refresh",
    response_model=Tokens,
    responses=problems(400, 401, 413, 415, 422, 503, 507),
    summary="Exchange a refresh token, which works once, for new tokens",
    openapi_extra={RATE_LIMIT: "refresh"},
)
async def refresh(
    body: RefreshBody,
    request: Request,
    response: Response,
    parts: PartsOfRequest,
    idempotency_key: IdempotencyKey = None,
) -> Tokens:
    asked = _asked(request, parts, idempotency_key, body)
    return _tokens(await parts.accounts.refresh(body.refresh_token, asked), response)


@router.post(
    "/auth/logout",
    operation_id="auth_logout",
    status_code=204,
    responses=problems(400, 413, 415, 422, 503, 507),
    summary="Void a session's refresh tokens; an unknown token changes nothing",
    openapi_extra={RATE_LIMIT: "refresh"},
)
async def logout(
    body: RefreshBody, request: Request, parts: PartsOfRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    await parts.accounts.log_out(body.refresh_token, _asked(request, parts, idempotency_key, body))
    return Response(status_code=204)


@own.get(
    "/users/me",
    operation_id="users_me",
    response_model=Me,
    responses=problems(*QUERY),
    summary="Who the access token speaks for",
)
async def me(caller: CallerOfRequest, response: Response, parts: PartsOfRequest) -> dict[str, Any]:
    profile = await parts.accounts.profile(caller.user_id)
    response.headers["X-Projection-Position"] = str(await parts.reader.head())
    return {
        "id": caller.user_id,
        "username": profile.username,
        "email": profile.email,
        "organization_id": caller.organization_id,
        "workspace_id": caller.workspace_id,
        "scopes": list(caller.scopes),
    }


def _asked(request: Request, parts: Parts, key: str | None, body: BaseModel) -> Context:
    # Nobody is known yet: `Accounts` fills in the actor, and whom the key belongs to.
    return Context(
        actor="",
        organization_id=None,
        workspace_id=None,
        request_id=request.state.request_id,
        correlation_id=request.state.request_id,
        causation_id=new_id(Prefix.COMMAND),
        traceparent=request.state.traceparent,
        idempotency=idempotency(request, parts, "", key, body),
    )


def _tokens(session: Session, response: Response) -> Tokens:
    if session.position:
        response.headers["X-Event-Position"] = str(session.position)
    return Tokens(
        access_token=session.access_token,
        expires_in=session.expires_in,
        refresh_token=session.refresh_token,
        refresh_expires_at=session.refresh_expires_at,
        user_id=session.user_id,
        organization_id=session.organization_id,
        workspace_id=session.workspace_id,
    )
