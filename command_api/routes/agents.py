"""Agents: the nodes of the organization, and how a new one is admitted."""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query

from command_api.domain.errors import NotFound
from command_api.routes.calling import ClosedRoute, needs
from command_api.routes.commanding import AskingOfRequest
from command_api.routes.problem_docs import COMMAND, QUERY, problems
from command_api.routes.reading import CursorParameter, Limit, MinPosition, Page, ReadingOfRequest, chosen
from command_api.routes.showing import show
from command_api.routes.travelling import MomentOfRequest, then
from projections.views import agents as view
from projections.views.agents import AgentDocument, Agents, AgentView
from schemas.api import EnrollAgentBody, EnrolmentTokenBody, IssuedEnrolmentToken, RevokeAgentBody
from schemas.commands.agent import EnrollAgent, RevokeAgent
from schemas.ids import AgentId, Prefix, new_id

router = APIRouter(
    prefix="/agents", tags=["agents"], dependencies=[needs("agents:read")], route_class=ClosedRoute
)

_AGENTS = Agents()


class AgentCommanded(AgentDocument):
    """An agent after a command."""

    command_id: str


@router.get(
    "",
    operation_id="agents_list",
    response_model=Page[AgentView],
    responses=problems(*QUERY),
    summary="List agents, newest first",
)
async def list_agents(
    reading: ReadingOfRequest,
    limit: Limit = 50,
    cursor: CursorParameter = None,
    status: Annotated[str | None, Query(max_length=200, description="online, offline or revoked.")] = None,
    min_position: MinPosition = None,
) -> dict[str, Any]:
    statuses = chosen("status", status, ("online", "offline", "revoked"))
    await reading.fresh("agents", min_position)

    async def rows(count: int, after: Any) -> list[AgentView]:
        async with reading.parts.pool.connection() as connection:
            return await view.page(
                connection, reading.organization_id, limit=count, after=after, statuses=statuses
            )

    return await reading.page(rows, limit=limit, cursor=cursor, filters=[status or ""])


@router.get(
    "/{agent_id}",
    operation_id="agents_get",
    response_model=AgentView,
    responses=problems(*QUERY),
    summary="Show an agent: what it can do, whether it is heard, what it works on",
)
async def get(
    agent_id: AgentId, reading: ReadingOfRequest, moment: MomentOfRequest, min_position: MinPosition = None
) -> Any:
    if moment is not None:
        return await then(reading, _AGENTS, agent_id, moment, min_position)
    await reading.fresh("agents", min_position)
    async with reading.parts.pool.connection() as connection:
        found = await view.get(connection, reading.organization_id, agent_id)
    if found is None:
        raise NotFound(f"agent {agent_id} does not exist")
    return found


@router.post(
    "/enroll",
    dependencies=[needs("agents:manage")],
    operation_id="agents_enroll",
    status_code=201,
    response_model=AgentCommanded,
    responses=problems(*COMMAND),
    summary="Admit a node to the organization and a pool",
    openapi_extra={"x-emits": ["kinora.agent.enrolled"]},
)
async def enroll(body: EnrollAgentBody, asking: AskingOfRequest) -> dict[str, Any]:
    command = EnrollAgent(agent_id=new_id(Prefix.AGENT), name=body.name, pool=body.pool)
    outcome = await asking.execute(command, body)
    agent_id = outcome.events[0].stream_id
    asking.response.headers["Location"] = f"/api/v1/agents/{agent_id}"
    return {**dict(await show(asking.parts, _AGENTS, agent_id)), "command_id": asking.command_id}


@router.post(
    "/{agent_id}/enrolment-token",
    dependencies=[needs("agents:manage")],
    operation_id="agents_enrolment_token",
    status_code=201,
    response_model=IssuedEnrolmentToken,
    responses=problems(*COMMAND),
    summary="A token with which one node may become this agent, once; earlier ones are void",
    openapi_extra={"x-emits": ["kinora.agent.enrolment_token_issued"]},
)
async def enrolment_token(
    agent_id: AgentId, asking: AskingOfRequest, body: EnrolmentTokenBody | None = None
) -> Any:
    asked = body or EnrolmentTokenBody()
    lifetime = timedelta(seconds=asked.expires_in_seconds)
    issued = await asking.parts.nodes.issue(agent_id, lifetime, asking.context(asked))
    asking.response.headers["X-Event-Position"] = str(issued.position)
    return IssuedEnrolmentToken(
        agent_id=agent_id, token=issued.token, expires_at=issued.expires_at, command_id=asking.command_id
    )


@router.post(
    "/{agent_id}/revoke",
    dependencies=[needs("agents:manage")],
    operation_id="agents_revoke",
    status_code=202,
    response_model=AgentCommanded,
    responses=problems(*COMMAND),
    summary="Shut an agent out for good; what it holds goes to another one; repeats change nothing",
    openapi_extra={"x-emits": ["kinora.agent.revoked"]},
)
async def revoke(
    agent_id: AgentId, asking: AskingOfRequest, body: RevokeAgentBody | None = None
) -> dict[str, Any]:
    asked = body or RevokeAgentBody()
    await asking.execute(RevokeAgent(agent_id=agent_id, reason=asked.reason), asked)
    return {**dict(await show(asking.parts, _AGENTS, agent_id)), "command_id": asking.command_id}
