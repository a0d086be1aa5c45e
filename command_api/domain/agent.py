"""An agent: a node that was admitted to one organization and one pool, and whether it was heard of."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias, assert_never

from command_api.domain.errors import Conflict, ImpossibleHistory, NotFound
from schemas.commands.agent import EnrollAgent, MarkAgentLost, MarkAgentOnline, ReportCapabilities
from schemas.events import Event
from schemas.events.agent import AgentEnrolled, AgentLost, AgentOnline, AgentProbed, Capabilities

Presence = Literal["enrolled", "online", "lost"]


@dataclass(frozen=True, slots=True)
class Absent:
    """No agent was enrolled under this id."""


@dataclass(frozen=True, slots=True)
class Silent:
    """Enrolled, and not heard of yet."""

    phase: ClassVar[Presence] = "enrolled"
    name: str
    pool: str
    capabilities: Capabilities | None = None


@dataclass(frozen=True, slots=True)
class Online:
    """Heard of within its lease."""

    phase: ClassVar[Presence] = "online"
    name: str
    pool: str
    capabilities: Capabilities | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Silent for a whole lease, or gone in order; it may come back."""

    phase: ClassVar[Presence] = "lost"
    name: str
    pool: str
    capabilities: Capabilities | None = None


Enrolled: TypeAlias = Silent | Online | Lost
State: TypeAlias = Absent | Enrolled
INITIAL: State = Absent()

AgentCommand: TypeAlias = EnrollAgent | ReportCapabilities | MarkAgentOnline | MarkAgentLost


def decide(state: State, command: AgentCommand) -> list[Event]:
    match command:
        case EnrollAgent():
            return _enroll(state, command)
        case ReportCapabilities(capabilities=capabilities):
            known = _enrolled(state, command.agent_id)
            return [] if known.capabilities == capabilities else [AgentProbed(capabilities=capabilities)]
        case MarkAgentOnline():
            known = _enrolled(state, command.agent_id)
            return [] if isinstance(known, Online) else [AgentOnline()]
        case MarkAgentLost(reason=reason):
            known = _enrolled(state, command.agent_id)
            return [AgentLost(reason=reason)] if isinstance(known, Online) else []
        case _:
            assert_never(command)


def evolve(state: State, event: Event) -> State:
    match state, event:
        case Absent(), AgentEnrolled(name=name, pool=pool):
            return Silent(name, pool)
        case Silent() | Online() | Lost(), AgentProbed(capabilities=capabilities):
            return replace(state, capabilities=capabilities)
        case Silent() | Lost(), AgentOnline():
            return Online(state.name, state.pool, state.capabilities)
        case Online(), AgentLost():
            return Lost(state.name, state.pool, state.capabilities)
        case _:
            raise ImpossibleHistory(state, event)


def _enroll(state: State, command: EnrollAgent) -> list[Event]:
    match state:
        case Absent():
            return [AgentEnrolled(name=command.name, pool=command.pool)]
        case Silent(name=name, pool=pool) | Online(name=name, pool=pool) | Lost(name=name, pool=pool):
            if (name, pool) == (command.name, command.pool):
                return []
            raise Conflict(
                f"agent {command.agent_id} is enrolled as {name} in pool {pool}; use a new id",
                code="agent_exists",
            )
        case _:
            assert_never(state)


def _enrolled(state: State, agent_id: str) -> Enrolled:
    if isinstance(state, Absent):
        raise NotFound(f"agent {agent_id} is not enrolled; enrol it first")
    return state
