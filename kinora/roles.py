"""The processes of the service: what each reads, where it says it is ready, how long it may take to stop."""

from collections.abc import Mapping
from typing import Literal

from command_api.settings import ApiSettings, AuditorSettings, OrchestratorSettings
from projections.settings import ProjectionsSettings
from schemas.base import Message
from trainer_agent.settings import AgentSettings

Role = Literal["api", "orchestrator", "projections", "auditor", "agent"]
ROLES: tuple[Role, ...] = ("api", "orchestrator", "projections", "auditor", "agent")

SETTINGS: Mapping[str, type[Message]] = {
    "api": ApiSettings,
    "orchestrator": OrchestratorSettings,
    "projections": ProjectionsSettings,
    "auditor": AuditorSettings,
    "agent": AgentSettings,
}
"""What each role reads."""

READY_VARIABLE = "KINORA_READY_FILE"
"""Where a role writes its process id once it works; a supervisor or a container's probe looks there."""

STOP_SECONDS = 15.0
"""How long a role other than the agent may take to stop."""


def agent_stop_seconds(settings: AgentSettings) -> float:
    """An agent saves a last checkpoint and gives its job back first."""
    return settings.shutdown_seconds + STOP_SECONDS
