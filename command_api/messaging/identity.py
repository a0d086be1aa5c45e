"""Who is asking: the subject's tokens, which the server lets only their owner use, against the log."""

import logging

from command_api.handlers.base import Context
from command_api.messaging.board import Agent, Item
from command_api.messaging.follower import Follower
from schemas.ids import Prefix, new_id

logger = logging.getLogger(__name__)


async def identify(follower: Follower, organization_id: str, agent_id: str) -> Agent | None:
    """The enrolled agent, if it belongs to the organization in whose name it speaks."""
    agent = follower.board.agents.get(agent_id)
    if agent is None:
        await follower.catch_up()
        agent = follower.board.agents.get(agent_id)
    if agent is None or agent.revoked or agent.organization_id != organization_id:
        logger.warning(
            "agent %s of organization %s is not enrolled there, or was revoked; refused",
            agent_id,
            organization_id,
        )
        return None
    return agent


async def find_item(follower: Follower, agent: Agent, item_id: str) -> Item | None:
    """The item, if it belongs to the agent's organization and something can still happen to it."""
    item = follower.board.items.get(item_id)
    if item is None:
        await follower.catch_up()
        item = follower.board.items.get(item_id)
    if item is not None and item.organization_id != agent.organization_id:
        logger.warning("agent %s asked for %s of another organization; refused", agent.agent_id, item_id)
        return None
    return item


def agent_context(agent: Agent, item: Item, causation_id: str, traceparent: str | None = None) -> Context:
    """An agent acting on an item: its events belong to the item's workspace and story."""
    return Context(
        actor=agent.agent_id,
        organization_id=item.organization_id,
        workspace_id=item.workspace_id,
        request_id=new_id(Prefix.REQUEST),
        correlation_id=item.correlation_id,
        causation_id=causation_id,
        traceparent=traceparent or item.traceparent,
    )


def item_context(part: str, item: Item, key: str) -> Context:
    """A part of the control plane acting on an item; `key` makes a repeat the same command."""
    return Context.system(
        part,
        organization_id=item.organization_id,
        workspace_id=item.workspace_id,
        correlation_id=item.correlation_id,
        causation_id=item.last_event_id,
        traceparent=item.traceparent,
        key=key,
    )


def presence_context(agent: Agent) -> Context:
    """The control plane noting that an agent came or went; that may happen any number of times."""
    return Context.system("leases", organization_id=agent.organization_id, workspace_id=agent.workspace_id)
