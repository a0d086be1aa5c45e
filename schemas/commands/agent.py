"""Commands on agents."""

from typing import ClassVar, Literal

from pydantic import AwareDatetime

from schemas.commands.base import Command
from schemas.events.agent import Capabilities
from schemas.ids import AgentId, NatsPublicKey


class EnrollAgent(Command):
    TYPE: ClassVar[str] = "enroll_agent"
    agent_id: AgentId
    name: str
    pool: str


class IssueEnrolmentToken(Command):
    """Let one node become this agent, until then. The token itself is a credential, not a fact."""

    TYPE: ClassVar[str] = "issue_enrolment_token"
    agent_id: AgentId
    expires_at: AwareDatetime


class JoinAgent(Command):
    """A node that holds the token brings its key; the same key again changes nothing."""

    TYPE: ClassVar[str] = "join_agent"
    agent_id: AgentId
    public_key: NatsPublicKey


class RevokeAgent(Command):
    TYPE: ClassVar[str] = "revoke_agent"
    agent_id: AgentId
    reason: str = ""


class ReportCapabilities(Command):
    """What the agent said of itself; a repeat without change does nothing."""

    TYPE: ClassVar[str] = "report_capabilities"
    agent_id: AgentId
    capabilities: Capabilities


class MarkAgentOnline(Command):
    TYPE: ClassVar[str] = "mark_agent_online"
    agent_id: AgentId


class MarkAgentLost(Command):
    TYPE: ClassVar[str] = "mark_agent_lost"
    agent_id: AgentId
    reason: Literal["lease_expired", "shut_down"]
