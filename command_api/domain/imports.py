"""The phases before files from elsewhere are here: asked for, fetched by the control plane, failed."""

from dataclasses import dataclass
from typing import Any, ClassVar

from command_api.domain.errors import Conflict
from schemas.api import Status
from schemas.commands.imports import FailImport, RequestImport
from schemas.events import Event
from schemas.events import imports as events


@dataclass(frozen=True, slots=True)
class Importing:
    """The control plane fetches its files."""

    phase: ClassVar[Status] = "importing"
    requested: events.ImportRequested
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class ImportFailed:
    """Its files could not be had; it waits for a retry or its deletion."""

    phase: ClassVar[Status] = "import_failed"
    requested: events.ImportRequested
    failed: events.ImportFailed


@dataclass(frozen=True, slots=True)
class Imports:
    """The decisions on imports of one kind of thing, in that kind's event types."""

    noun: str
    requested: type[events.ImportRequested]
    failed: type[events.ImportFailed]
    retried: type[events.ImportRetried]

    def request(self, state: Any, item_id: str, command: RequestImport) -> list[Event]:
        """`state` is None where nothing has the id yet."""
        requested = self.requested(
            name=command.name,
            description=command.description,
            owner_id=command.owner_id,
            source=command.source,
        )
        if state is None:
            return [requested]
        if isinstance(state, Importing | ImportFailed) and state.requested == requested:
            return []
        raise Conflict(f"{self.noun} {item_id} exists already; use a new id", code=f"{self.noun}_exists")

    def running(self, state: Any, item_id: str, attempt: int) -> Importing:
        """The state, if this attempt is the one that runs."""
        if isinstance(state, Importing) and state.attempt == attempt:
            return state
        raise Conflict(
            f"import {attempt} of {self.noun} {item_id} is over; forget its outcome", code="import_over"
        )

    def fail(self, state: Any, item_id: str, command: FailImport) -> list[Event]:
        self.running(state, item_id, command.attempt)
        return [
            self.failed(
                attempt=command.attempt,
                code=command.code,
                message=command.message,
                retryable=command.retryable,
            )
        ]

    def retry(self, state: Any, item_id: str) -> list[Event]:
        match state:
            case ImportFailed(failed=failed):
                return [self.retried(attempt=failed.attempt + 1)]
            case Importing():
                return []
            case _:
                raise Conflict(
                    f"{self.noun} {item_id} is {state.phase}; only a failed import can be retried",
                    code="import_not_failed",
                )


def being_imported(item_id: str, state: Importing | ImportFailed) -> Conflict:
    """Its files come from elsewhere, not from a client."""
    return Conflict(
        f"{item_id} is {state.phase}: its files come from {state.requested.source.uri};"
        " register another one to upload files",
        code="being_imported",
    )
