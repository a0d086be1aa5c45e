"""A person: registered once, logging in, with refresh-token families that can be revoked."""

from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from command_api.domain.errors import Conflict, ImpossibleHistory, NotFound
from schemas.commands.identity import EraseUser, RecordLogin, RegisterUser, RevokeTokenFamily
from schemas.events import Event
from schemas.events.identity import TokenFamilyRevoked, UserErased, UserLoggedIn, UserRegistered


@dataclass(frozen=True, slots=True)
class Absent:
    """Nobody has signed up under this id."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A person who may log in."""

    registration: UserRegistered
    revoked_families: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Erased:
    """A person who was forgotten. The id stays taken, so that nobody is mistaken for them."""


State: TypeAlias = Absent | Registered | Erased
INITIAL: State = Absent()

UserCommand: TypeAlias = RegisterUser | RecordLogin | RevokeTokenFamily | EraseUser


def decide(state: State, command: UserCommand) -> list[Event]:
    match command:
        case RegisterUser():
            return _register(state, command)
        case RecordLogin():
            _registered(state, command.user_id)
            return [UserLoggedIn()]
        case RevokeTokenFamily(family_id=family_id, reason=reason):
            if family_id in _registered(state, command.user_id).revoked_families:
                return []
            return [TokenFamilyRevoked(family_id=family_id, reason=reason)]
        case EraseUser():
            if isinstance(state, Erased):
                return []
            _registered(state, command.user_id)
            return [UserErased(requested_by=command.requested_by)]
        case _:
            assert_never(command)


def evolve(state: State, event: Event) -> State:
    match state, event:
        case Absent(), UserRegistered():
            return Registered(event)
        case Registered(), UserLoggedIn():
            return state
        case Registered(revoked_families=families), TokenFamilyRevoked(family_id=family_id):
            return replace(state, revoked_families=families | {family_id})
        case Registered(), UserErased():
            return Erased()
        case _:
            raise ImpossibleHistory(state, event)


def _register(state: State, command: RegisterUser) -> list[Event]:
    registration = UserRegistered(
        username_ciphertext=command.username_ciphertext, email_ciphertext=command.email_ciphertext
    )
    match state:
        case Absent():
            return [registration]
        case Registered(registration=known) if known == registration:
            return []
        case Registered() | Erased():
            raise Conflict(f"user {command.user_id} is registered already; use a new id", code="user_exists")
        case _:
            assert_never(state)


def _registered(state: State, user_id: str) -> Registered:
    if not isinstance(state, Registered):
        raise NotFound(f"user {user_id} does not exist; sign up first")
    return state
