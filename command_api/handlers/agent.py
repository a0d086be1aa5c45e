"""Agents: all that is decided on one of them alone, and the check that a claim comes from one."""

from collections.abc import Mapping

from command_api.domain import agent
from command_api.handlers.base import Handler, Streams, single_aggregate
from schemas.commands import Command
from schemas.commands.agent import (
    EnrollAgent,
    IssueEnrolmentToken,
    JoinAgent,
    MarkAgentLost,
    MarkAgentOnline,
    ReportCapabilities,
    RevokeAgent,
)


def enrolled_agent(streams: Streams, agent_id: str) -> agent.Enrolled:
    """The agent that makes a claim.

    Raises:
        NotFound: when nobody enrolled it, or another organization did.
        Conflict: when it was revoked.
    """
    return agent.admitted(streams.load(agent_id).state, agent_id)


HANDLERS: Mapping[type[Command], Handler] = {
    command: single_aggregate(agent.decide, lambda command: command.agent_id)
    for command in (
        EnrollAgent,
        IssueEnrolmentToken,
        JoinAgent,
        RevokeAgent,
        ReportCapabilities,
        MarkAgentOnline,
        MarkAgentLost,
    )
}
