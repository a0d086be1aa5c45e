"""Takes back what silent agents hold, but only when silence can be told from an outage of our own.

What a revoked agent holds goes back at once: nothing that it still says counts.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from command_api.domain.errors import Refused
from command_api.eventlog.errors import LogUnavailable
from command_api.handlers.bus import CommandBus
from command_api.messaging.follower import Follower
from command_api.messaging.heartbeats import note_presence
from command_api.messaging.identity import item_context
from command_api.messaging.leases import Held, Leases
from schemas.commands import Command
from schemas.commands.dataset import InterruptDatasetValidation
from schemas.commands.job import ExpireLease
from schemas.commands.model import InterruptModelValidation
from schemas.errors import KinoraError
from schemas.ids import Prefix, id_prefix

logger = logging.getLogger(__name__)


class Expiry:
    """Checks the leases; after every start, reconnect or pause it gives everybody a whole period first."""

    def __init__(
        self,
        follower: Follower,
        bus: CommandBus,
        leases: Leases,
        clock: Callable[[], float],
        *,
        connected: Callable[[], bool],
        unread: Callable[[str, Held], Awaitable[bool]],
    ) -> None:
        self._follower = follower
        self._bus = bus
        self._leases = leases
        self._clock = clock
        self._connected = connected
        self._unread = unread
        self._ticked = clock()

    def restart(self) -> None:
        """Agents could not be heard for a while, for reasons of ours."""
        self._leases.restart(self._clock())

    async def run(self) -> None:
        """Check until cancelled."""
        self.restart()
        while True:
            try:
                await self._tick()
            except KinoraError as error:
                logger.warning("leases: %s; checking again", error)
            await asyncio.sleep(min(1.0, self._leases.period / 10))

    async def _tick(self) -> None:
        now = self._clock()
        paused = now - self._ticked > self._leases.period / 2
        self._ticked = now
        if paused or not self._connected():
            self.restart()
        self._sync(now)
        if not (self._shut_out() or self._leases.expired(now) or self._leases.silent(now)):
            return
        await self._follower.catch_up()
        self._sync(now)
        for held in {*self._shut_out(), *self._leases.expired(self._clock())}:
            try:
                await self._expire(held)
            except LogUnavailable:
                raise
            except KinoraError as error:  # a damaged stream must not keep the others
                logger.error("lease of %s cannot be ended: %s", held.item_id, error)  # noqa: TRY400
        for agent_id in self._leases.silent(self._clock()):
            logger.warning("agent %s was silent for %g s; it counts as lost", agent_id, self._leases.period)
            await note_presence(
                self._follower, self._bus, self._follower.board.agents[agent_id], "lease_expired"
            )

    def _shut_out(self) -> list[Held]:
        """Attempts of revoked agents."""
        board = self._follower.board
        return [held for held in board.held() if board.agents[held.agent_id].revoked]

    def _sync(self, now: float) -> None:
        board = self._follower.board
        self._leases.sync(board.held(), board.online(), now)

    async def _expire(self, held: Held) -> None:
        item = self._follower.board.holds(held)
        # A report that waits in REPORTS may say that the attempt is over.
        if item is None or await self._unread(item.organization_id, held):
            return
        logger.warning("agent %s lost the lease of %s attempt %d", held.agent_id, held.item_id, held.attempt)
        context = item_context("leases", item, f"leases:expire:{held.item_id}:{held.attempt}")
        try:
            outcome = await self._bus.execute(_command(held), context)
        except Refused as error:
            logger.info("lease of %s: %s", held.item_id, error)
            await self._follower.catch_up()
            return
        await self._follower.reach(outcome.position)


def _command(held: Held) -> Command:
    match id_prefix(held.item_id):
        case Prefix.DATASET:
            return InterruptDatasetValidation(
                dataset_id=held.item_id, attempt=held.attempt, reason="lease_expired"
            )
        case Prefix.MODEL:
            return InterruptModelValidation(
                model_id=held.item_id, attempt=held.attempt, reason="lease_expired"
            )
        case _:
            return ExpireLease(job_id=held.item_id, attempt=held.attempt)
