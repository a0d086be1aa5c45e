"""A finding of the auditor: open while something derived differs from the log, and perhaps again later."""

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from command_api.domain.errors import ImpossibleHistory
from schemas.commands.finding import OpenFinding, ResolveFinding
from schemas.events import Event
from schemas.events.finding import FindingOpened, FindingResolved


@dataclass(frozen=True, slots=True)
class Agrees:
    """Nothing was ever found, or it was put right."""


@dataclass(frozen=True, slots=True)
class Differs:
    """Found, and not put right yet."""


State: TypeAlias = Agrees | Differs
INITIAL: State = Agrees()

FindingCommand: TypeAlias = OpenFinding | ResolveFinding


def decide(state: State, command: FindingCommand) -> list[Event]:
    match command:
        case OpenFinding():
            opened = FindingOpened(
                check=command.check,
                subject=command.subject,
                about=command.about,
                detail=command.detail,
                remedy=command.remedy,
            )
            return [] if isinstance(state, Differs) else [opened]
        case ResolveFinding(detail=detail):
            return [FindingResolved(detail=detail)] if isinstance(state, Differs) else []
        case _:
            assert_never(command)


def evolve(state: State, event: Event) -> State:
    match state, event:
        case Agrees(), FindingOpened():
            return Differs()
        case Differs(), FindingResolved():
            return Agrees()
        case _:
            raise ImpossibleHistory(state, event)
