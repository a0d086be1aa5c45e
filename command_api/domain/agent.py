"""An agent: a node that was admitted to one organization and one pool, and whether it was heard of."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias, assert_never

from command_api.domain.errors import Conflict, ImpossibleHistory, NotFound
from schemas.commands.agent import (
    EnrollAgent,
    IssueEnrolmentToken,
    JoinAgent,
    MarkAgentLost,
    MarkAgentOnline,
    ReportCapabilities,
    RevokeAgent,
)
from schemas.events import Event
from schemas.events.agent import (
    AgentEnrolled,
    AgentJoined,
    AgentLost,
    AgentOnline,
    AgentProbed,
    AgentRevoked,
    Capabilities,
    EnrolmentTokenIssued,
)

Presence = Literal["enrolled", "online", "lost", "revoked"]


@dataclass(frozen=True, slots=True)
class Absent:
    """No agent was enrolled under this id."""


@dataclass(frozen=True, slots=True)
class Node:
    """What stays of an agent whether it is heard or not."""

    name: str
    pool: str
    capabilities: Capabilities | None = None
    public_key: str | None = None
    """Of the node that joined; None while none has."""


@dataclass(frozen=True, slots=True)
class Silent(Node):
    """Enrolled, and not heard of yet."""

    phase: ClassVar[Presence] = "enrolled"


@dataclass(frozen=True, slots=True)
class Online(Node):
    """Heard of within its lease."""

    phase: ClassVar[Presence] = "online"


@dataclass(frozen=True, slots=True)
class Lost(Node):
    """Silent for a whole lease, or gone in order; it may come back."""

    phase: ClassVar[Presence] = "lost"


@dataclass(frozen=True, slots=True)
class Revoked(Node):
    """Shut out for good."""

    phase: ClassVar[Presence] = "revoked"


Enrolled: TypeAlias = Silent | Online | Lost
State: TypeAlias = Absent | Enrolled | Revoked
INITIAL: State = Absent()

AgentCommand: TypeAlias = (
    EnrollAgent
    | IssueEnrolmentToken
    | JoinAgent
    | RevokeAgent
    | ReportCapabilities
    | MarkAgentOnline
    | MarkAgentLost
)


def decide(state: State, command: AgentCommand) -> list[Event]:
    match command:
        case EnrollAgent():
            return _enroll(state, command)
        case IssueEnrolmentToken(expires_at=expires_at):
            admitted(state, command.agent_id)
            return [EnrolmentTokenIssued(expires_at=expires_at)]
        case JoinAgent(public_key=public_key):
            known = admitted(state, command.agent_id)
            return [] if known.public_key == public_key else [AgentJoined(public_key=public_key)]
        case RevokeAgent(reason=reason):
            if isinstance(state, Revoked):
                return []
            admitted(state, command.agent_id)
            return [AgentRevoked(reason=reason)]
        case ReportCapabilities(capabilities=capabilities):
            known = admitted(state, command.agent_id)
            return [] if known.capabilities == capabilities else [AgentProbed(capabilities=capabilities)]
        case MarkAgentOnline():
            known = admitted(state, command.agent_id)
            return [] if isinstance(known, Online) else [AgentOnline()]
        case MarkAgentLost(reason=reason):
            if isinstance(state, Revoked):
                return []
            known = admitted(state, command.agent_id)
            return [AgentLost(reason=reason)] if isinstance(known, Online) else []
        case _:
            assert_never(command)


def evolve(state: State, event: Event) -> State:
    match state, event:
        case Absent(), AgentEnrolled(name=name, pool=pool):
            return Silent(name, pool)
        case Silent() | Online() | Lost(), EnrolmentTokenIssued():
            return state
        case Silent() | Online() | Lost(), AgentJoined(public_key=public_key):
            return replace(state, public_key=public_key)
        case Silent() | Online() | Lost(), AgentProbed(capabilities=capabilities):
            return replace(state, capabilities=capabilities)
        case Silent() | Lost(), AgentOnline():
            return Online(state.name, state.pool, state.capabilities, state.public_key)
        case Online(), AgentLost():
            return Lost(state.name, state.pool, state.capabilities, state.public_key)
        case Silent() | Online() | Lost(), AgentRevoked():
            return Revoked(state.name, state.pool, state.capabilities, state.public_key)
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
        case Revoked():
            raise _revoked(command.agent_id)
        case _:
            assert_never(state)


def admitted(state: State, agent_id: str) -> Enrolled:
    """The agent, if it may act.

    Raises:
        NotFound: nobody enrolled it.
        Conflict: ``agent_revoked``.
    """
    if isinstance(state, Absent):
        raise NotFound(f"agent {agent_id} is not enrolled; enrol it first")
    if isinstance(state, Revoked):
        raise _revoked(agent_id)
    return state


def _revoked(agent_id: str) -> Conflict:
    return Conflict(
        f"agent {agent_id} was revoked for good; enrol the node as a new agent", code="agent_revoked"
    )
