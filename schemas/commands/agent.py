"""Commands on agents."""

from typing import ClassVar, Literal

from schemas.commands.base import Command
from schemas.events.agent import Capabilities
from schemas.ids import AgentId


class EnrollAgent(Command):
    TYPE: ClassVar[str] = "enroll_agent"
    agent_id: AgentId
    name: str
    pool: str


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
