"""An organization: the owner of everything, with its workspaces and members."""

from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from command_api.domain.errors import Conflict, ImpossibleHistory
from schemas.commands.identity import CreateOrganization
from schemas.events import Event
from schemas.events.identity import MemberAdded, OrganizationCreated, Role, WorkspaceCreated

FIRST_WORKSPACE = "default"


@dataclass(frozen=True, slots=True)
class Absent:
    """No organization began under this id."""


@dataclass(frozen=True, slots=True)
class Active:
    """An organization that may own things."""

    personal: bool
    workspaces: tuple[tuple[str, str], ...] = ()
    """Id and name, oldest first."""
    members: tuple[tuple[str, Role], ...] = ()
    """User id and role, oldest first."""


State: TypeAlias = Absent | Active
INITIAL: State = Absent()

OrganizationCommand: TypeAlias = CreateOrganization


def decide(state: State, command: OrganizationCommand) -> list[Event]:
    match state:
        case Absent():
            return [
                OrganizationCreated(organization_id=command.organization_id, personal=command.personal),
                WorkspaceCreated(workspace_id=command.workspace_id, name=FIRST_WORKSPACE),
                MemberAdded(user_id=command.owner_id, role="owner"),
            ]
        case Active() if _as_asked(state, command):
            return []
        case Active():
            raise Conflict(
                f"organization {command.organization_id} exists already; use a new id",
                code="organization_exists",
            )
        case _:
            assert_never(state)


def evolve(state: State, event: Event) -> State:
    match state, event:
        case Absent(), OrganizationCreated(personal=personal):
            return Active(personal)
        case Active(workspaces=workspaces), WorkspaceCreated(workspace_id=workspace_id, name=name):
            return replace(state, workspaces=(*workspaces, (workspace_id, name)))
        case Active(members=members), MemberAdded(user_id=user_id, role=role):
            return replace(state, members=(*members, (user_id, role)))
        case _:
            raise ImpossibleHistory(state, event)


def _as_asked(state: Active, command: CreateOrganization) -> bool:
    return (
        state.personal == command.personal
        and (command.workspace_id, FIRST_WORKSPACE) in state.workspaces
        and (command.owner_id, "owner") in state.members
    )
