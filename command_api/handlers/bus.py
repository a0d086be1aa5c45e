"""The command bus: what routes, inbox and policies await while the writer thread decides and appends."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from command_api.domain.aggregates import AGGREGATES
from command_api.eventlog.log import EventLog
from command_api.eventlog.recorder import SideRow
from command_api.handlers.base import Context, Loaded
from command_api.handlers.deciding import Answer, Outcome
from command_api.handlers.decision import Clock, Handlers, Request, utc_now
from command_api.handlers.traced import Traced
from command_api.handlers.writer import LoadUnit, Unit, Writer
from schemas.commands import Command


class CommandBus:
    """Carries commands out, one decision after the other.

    Load → decide → append; when the stream moved on meanwhile, load and decide again, three times.
    """

    def __init__(
        self,
        log: EventLog,
        handlers: Handlers,
        *,
        clock: Clock = utc_now,
    ) -> None:
        self._writer = Writer(log, handlers, AGGREGATES, clock)

    async def __aenter__(self) -> Self:
        self._writer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._writer.stop)

    async def execute(self, command: Command, context: Context, rows: Sequence[SideRow] = ()) -> Outcome:
        """Carry one command out; `rows` are written in the same transaction, or not at all.

        Raises:
            Refused: the command was decided against, also because its key belongs to another request.
            VersionConflict: others kept changing the stream; ask again.
            EventNotCanonical: an event cannot be stored, for instance because it is too large.
            LogUnavailable: the database does not answer; the command may or may not have been carried out.
        """
        (answer,) = await self._hand_in([(command, context, rows)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def execute_batch(
        self, requests: Sequence[tuple[Command, Context, Sequence[SideRow]]]
    ) -> list[Answer]:
        """Decide requests in order, later ones on top of earlier ones, and commit once.

        Each gets its own answer; a refusal of one does not touch the others, except that those behind it
        were decided without it. When the commit fails, each gets a transaction of its own.

        Raises:
            LogUnavailable: the database does not answer; repeat the whole batch.
        """
        return await self._hand_in(requests) if requests else []

    async def load(self, stream_id: str) -> Loaded:
        """Fold a stream as it is after everything that was handed in before. Checks no organization."""
        reply: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self._writer.submit(LoadUnit(stream_id, reply))
        return await reply

    async def _hand_in(self, requests: Sequence[tuple[Command, Context, Sequence[SideRow]]]) -> list[Answer]:
        traced = [Traced.begin(command, context) for command, context, _ in requests]
        units = tuple(
            Request(one.command, one.context, tuple(rows))
            for one, (_, _, rows) in zip(traced, requests, strict=True)
        )
        reply: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        answers: Sequence[Answer | BaseException] = [asyncio.CancelledError()] * len(traced)
        try:
            self._writer.submit(Unit(units, reply))
            answers = answered = await reply
        except Exception as error:
            answers = [error] * len(traced)
            raise
        finally:
            for one, answer in zip(traced, answers, strict=True):
                one.end(answer)
        return answered


__all__ = ["Answer", "CommandBus", "Outcome"]
