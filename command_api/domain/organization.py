"""An organization: the owner of everything, with its workspaces and members."""

from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from command_api.domain.errors import Conflict, ImpossibleHistory, NotFound
from schemas.commands.identity import CreateOrganization, DeleteSecret, RemoveMember, StoreSecret
from schemas.events import Event
from schemas.events.identity import (
    MemberAdded,
    MemberRemoved,
    OrganizationCreated,
    Role,
    SecretDeleted,
    SecretStored,
    WorkspaceCreated,
)

FIRST_WORKSPACE = "default"
MOST_SECRETS = 100
"""In one workspace."""


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
    secrets: frozenset[tuple[str, str]] = frozenset()
    """Workspace id and name of every stored credential."""


State: TypeAlias = Absent | Active
INITIAL: State = Absent()

OrganizationCommand: TypeAlias = CreateOrganization | RemoveMember | StoreSecret | DeleteSecret


def decide(state: State, command: OrganizationCommand) -> list[Event]:
    match command:
        case CreateOrganization():
            return _create(state, command)
        case RemoveMember():
            return _remove_member(state, command)
        case StoreSecret():
            return _store_secret(state, command)
        case DeleteSecret():
            return _delete_secret(state, command)
        case _:
            assert_never(command)


def _create(state: State, command: CreateOrganization) -> list[Event]:
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
        case Active(members=members), MemberRemoved(user_id=user_id):
            return replace(state, members=tuple(each for each in members if each[0] != user_id))
        case Active(secrets=secrets), SecretStored(workspace_id=workspace_id, name=name):
            return replace(state, secrets=secrets | {(workspace_id, name)})
        case Active(secrets=secrets), SecretDeleted(workspace_id=workspace_id, name=name):
            return replace(state, secrets=secrets - {(workspace_id, name)})
        case _:
            raise ImpossibleHistory(state, event)


def _remove_member(state: State, command: RemoveMember) -> list[Event]:
    if isinstance(state, Absent):
        raise NotFound(f"organization {command.organization_id} does not exist")
    others = [role for user_id, role in state.members if user_id != command.user_id]
    if len(others) == len(state.members):
        return []
    if others and "owner" not in others:
        raise Conflict(
            f"{command.user_id} is the only owner of {command.organization_id}, which has {len(others)} other"
            " members; make one of them an owner first",
            code="sole_owner",
        )
    return [MemberRemoved(user_id=command.user_id, reason=command.reason)]


def _store_secret(state: State, command: StoreSecret) -> list[Event]:
    active = _with_workspace(state, command)
    others = {name for workspace, name in active.secrets if workspace == command.workspace_id}
    if len(others - {command.name}) >= MOST_SECRETS:
        raise Conflict(
            f"the workspace has {MOST_SECRETS} secrets, the most there may be; delete one that is not needed",
            code="too_many_secrets",
        )
    return [SecretStored(workspace_id=command.workspace_id, name=command.name, kind=command.kind)]


def _delete_secret(state: State, command: DeleteSecret) -> list[Event]:
    if (command.workspace_id, command.name) not in _with_workspace(state, command).secrets:
        raise NotFound(
            f"the workspace has no secret {command.name}; `kinora secrets ls` shows those that it has",
            code="secret_unknown",
        )
    return [SecretDeleted(workspace_id=command.workspace_id, name=command.name)]


def _with_workspace(state: State, command: StoreSecret | DeleteSecret) -> Active:
    if isinstance(state, Absent) or command.workspace_id not in dict(state.workspaces):
        raise NotFound(f"workspace {command.workspace_id} does not exist")
    return state


def _as_asked(state: Active, command: CreateOrganization) -> bool:
    return (
        state.personal == command.personal
        and (command.workspace_id, FIRST_WORKSPACE) in state.workspaces
        and (command.owner_id, "owner") in state.members
    )
