"""Forgetting a person, at their own request or an operator's."""

import asyncio
from dataclasses import replace

import psycopg
import structlog

from command_api.auth.erased import ErasedUsers
from command_api.auth.tokens import OPERATE, Principal
from command_api.credentials.erasure import NOW, OVERWRITE, STILL_SEEN, ErasureRow
from command_api.credentials.store import Credentials, Pool
from command_api.domain.errors import NotFound
from command_api.handlers.base import Context
from command_api.handlers.bus import CommandBus, Outcome
from schemas.commands.identity import EraseUser

LOOKS, LOOK_SECONDS = 500, 0.02
"""How often, and how far apart, to look for older transactions."""

_log = structlog.get_logger(__name__)


class Erasure:
    """Destroys a person's key and rows; the log's events, and every proof of them, stay as they are."""

    def __init__(self, bus: CommandBus, credentials: Credentials, pool: Pool, erased: ErasedUsers) -> None:
        self._bus = bus
        self._credentials = credentials
        self._pool = pool
        self._erased = erased

    async def erase(self, user_id: str, caller: Principal, asked: Context) -> Outcome:
        """Forget `user_id` for good; somebody who was forgotten already stays so.

        Raises:
            NotFound: there is no such person, or it is not for the caller to say.
            Conflict: ``sole_owner``, ``last_operator``.
        """
        if user_id != caller.user_id and OPERATE not in caller.scopes:
            raise NotFound(f"{user_id} does not exist; check the id")
        homes = await self._credentials.memberships(user_id)
        command = EraseUser(
            user_id=user_id,
            organization_ids=tuple(dict.fromkeys(home.organization_id for home in homes)),
            requested_by=caller.user_id,
        )
        # As the control plane itself, because it reaches into every organization of theirs.
        context = replace(
            Context.system(
                "erasure",
                correlation_id=asked.correlation_id,
                causation_id=asked.causation_id,
                traceparent=asked.traceparent,
            ),
            idempotency=asked.idempotency,
        )
        outcome = await self._bus.execute(command, context, [ErasureRow(user_id)])
        await self._erased.add(user_id)
        await self._overwrite()
        return outcome

    async def _overwrite(self) -> None:
        try:
            async with self._pool.connection() as connection:
                await self._until_unseen(connection)
                await connection.execute(OVERWRITE)
        except psycopg.Error as error:
            # The row is gone; what its bytes leave in the table's file is overwritten by later ones.
            _log.warning("erasure.not_overwritten", reason=str(error))

    async def _until_unseen(self, connection: psycopg.AsyncConnection) -> None:
        """Rows that an older transaction could still read would be written anew with the others."""
        now = await (await connection.execute(NOW)).fetchone()
        for _ in range(LOOKS):
            row = await (await connection.execute(STILL_SEEN, now)).fetchone()
            if row is None or not row[0]:
                return
            await asyncio.sleep(LOOK_SECONDS)
        _log.warning("erasure.not_overwritten", reason="a transaction, perhaps a backup, goes on for long")
