"""Keeps the trees level with the log, signs heads over them, and goes on reading the log again."""

import asyncio
import logging

import psycopg
from psycopg import AsyncConnection

from command_api.connected import connected
from command_api.metrics import MERKLE_CONTRADICTED, MERKLE_HEAD
from command_api.transparency.alarm import Alarm
from command_api.transparency.errors import LogContradicted
from command_api.transparency.growth import TileMissing
from command_api.transparency.heads import Signer, refuse_shorter, sign_head
from command_api.transparency.recheck import recheck
from command_api.transparency.trees import advance, forget

logger = logging.getLogger(__name__)

PACE_SECONDS = 0.5
"""Between two rounds: a busy log is followed in larger pages rather than event by event."""
RETRY_SECONDS = 1.0


class Keeper:
    """The one that is active keeps trees and heads; another one beside it does no harm."""

    def __init__(
        self,
        conninfo: str,
        log_id: str,
        signer: Signer | None,
        alarm: Alarm,
        wake: asyncio.Event,
        *,
        head_seconds: float,
    ) -> None:
        self._conninfo = conninfo
        self._log_id = log_id
        self._signer = signer
        self._alarm = alarm
        self._wake = wake
        self._head_seconds = head_seconds
        self._signed: list[asyncio.Event] = []

    def signed(self) -> asyncio.Event:
        """An event that is set whenever a head was signed."""
        event = asyncio.Event()
        event.set()
        self._signed.append(event)
        return event

    async def run(self) -> None:
        """Keep until cancelled."""
        while True:
            try:
                async with connected(
                    self._conninfo, autocommit=True, connect_timeout=5, application_name="kinora keeper"
                ) as connection:
                    await self._keep(connection)
            except psycopg.OperationalError as error:
                logger.warning(
                    "keeper: %s; trying again", str(error).splitlines()[0] if str(error) else error
                )
                await asyncio.sleep(RETRY_SECONDS)

    async def _keep(self, connection: AsyncConnection) -> None:
        if self._signer is None:
            logger.warning("keeper: without audit_key_pem in its settings no head is signed")
        else:
            await self._signer.register(connection)
        clock = asyncio.get_running_loop().time
        due = recheck_due = clock()
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._follow(connection)
                if clock() >= due and await self._sign(connection):
                    due = clock() + self._head_seconds
            except LogContradicted as error:
                MERKLE_CONTRADICTED.set(1)
                await self._alarm.contradicted(error)
                await asyncio.sleep(self._head_seconds)  # it may be put right
                self._wake.set()
                continue
            except TileMissing as error:
                logger.error("keeper: %s is damaged; making all trees again", error)  # noqa: TRY400
                await forget(connection)
                self._wake.set()
                continue
            MERKLE_CONTRADICTED.set(0)
            if clock() >= recheck_due:
                await self._alarm.agrees(connection)
                await self._alarm.rechecked(await recheck(connection))
                recheck_due = clock() + self._head_seconds
            await asyncio.sleep(PACE_SECONDS)

    async def _follow(self, connection: AsyncConnection) -> None:
        while await advance(connection) is not None:
            continue
        await refuse_shorter(connection)

    async def _sign(self, connection: AsyncConnection) -> bool:
        """Whether a head was due and signed."""
        if self._signer is None:
            return False
        signed = await sign_head(connection, self._signer, self._log_id)
        if signed is None:
            return False
        MERKLE_HEAD.set(signed.head.position)
        for event in self._signed:
            event.set()
        return True
