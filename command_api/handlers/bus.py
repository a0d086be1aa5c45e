"""The command bus: one writer thread per process that loads, decides and appends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from command_api.handlers.base import Context, Handler, Loaded
from schemas.commands import Command
from schemas.envelope import Recorded


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command that was not refused."""

    position: int
    """Position of its last event; the log's head when it made none."""
    events: tuple[Recorded, ...]
    replayed: bool
    """True when the command had been carried out before and this is that first outcome."""


class CommandBus:
    """Signatures first; the body follows."""

    def __init__(self, log: object, handlers: Mapping[type[Command], Handler]) -> None:
        raise NotImplementedError

    async def execute(self, command: Command, context: Context, rows: Sequence[object] = ()) -> Outcome:
        raise NotImplementedError

    async def execute_batch(
        self, requests: Sequence[tuple[Command, Context, Sequence[object]]]
    ) -> list[Outcome | Exception]:
        raise NotImplementedError

    async def load(self, stream_id: str) -> Loaded:
        raise NotImplementedError
