"""What a node asks before it may speak on NATS, or when its right to has run out: open routes with proofs."""

from typing import Any

from fastapi import APIRouter, Request

from command_api.handlers.base import Context
from command_api.routes.calling import RATE_LIMIT, OpenRoute
from command_api.routes.commanding import IdempotencyKey
from command_api.routes.parts import PartsOfRequest
from command_api.routes.problem_docs import problems
from schemas.api import JoinAgentBody, JoinedAgent, NatsRight, RenewAgentBody
from schemas.ids import AgentId

router = APIRouter(prefix="/agents", tags=["agents"], route_class=OpenRoute)


@router.post(
    "/join",
    operation_id="agents_join",
    response_model=JoinedAgent,
    responses=problems(400, 401, 409, 413, 415, 422, 503),
    summary="Become an agent, with its enrolment token and a key that the node made itself",
    openapi_extra={"x-emits": ["kinora.agent.joined"], RATE_LIMIT: "enrolment"},
)
async def join(
    body: JoinAgentBody, request: Request, parts: PartsOfRequest, _key: IdempotencyKey = None
) -> Any:
    # The token is what makes a repeat the same request.
    request_id = request.state.request_id
    asked = Context(
        actor="",
        organization_id=None,
        workspace_id=None,
        request_id=request_id,
        correlation_id=request_id,
        causation_id=request_id,
        traceparent=request.state.traceparent,
    )
    joined = await parts.nodes.join(body, asked)
    return JoinedAgent(
        agent_id=joined.enrolment.agent_id,
        organization_id=joined.enrolment.organization_id,
        pool=joined.pool,
        name=joined.name,
        nats_url=parts.settings.nats.agents_url or parts.settings.nats.url,
        jwt=joined.signed.jwt,
        expires_at=joined.signed.expires_at,
    )


@router.post(
    "/{agent_id}/renew",
    operation_id="agents_renew",
    response_model=NatsRight,
    responses=problems(400, 401, 404, 409, 413, 415, 422, 503),
    summary="The next NATS JWT of an agent's node, which proves itself with its key",
    openapi_extra={RATE_LIMIT: "enrolment"},
)
async def renew(
    agent_id: AgentId, body: RenewAgentBody, parts: PartsOfRequest, _key: IdempotencyKey = None
) -> Any:
    signed = await parts.nodes.renew(agent_id, body)
    return NatsRight(jwt=signed.jwt, expires_at=signed.expires_at)
