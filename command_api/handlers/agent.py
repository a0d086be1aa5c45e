"""Agents: all that is decided on one of them alone, and the check that a claim comes from one."""

from collections.abc import Mapping

from command_api.domain import agent
from command_api.domain.errors import NotFound
from command_api.handlers.base import Handler, Streams, single_aggregate
from schemas.commands import Command
from schemas.commands.agent import EnrollAgent, MarkAgentLost, MarkAgentOnline, ReportCapabilities


def enrolled_agent(streams: Streams, agent_id: str) -> agent.Enrolled:
    """The agent that makes a claim.

    Raises:
        NotFound: when nobody enrolled it, or another organization did.
    """
    state: agent.State = streams.load(agent_id).state
    if isinstance(state, agent.Absent):
        raise NotFound(f"agent {agent_id} is not enrolled; enrol it first")
    return state


HANDLERS: Mapping[type[Command], Handler] = {
    command: single_aggregate(agent.decide, lambda command: command.agent_id)
    for command in (EnrollAgent, ReportCapabilities, MarkAgentOnline, MarkAgentLost)
}
