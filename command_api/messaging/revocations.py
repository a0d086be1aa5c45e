"""Cuts revoked agents off NATS at once: the account's JWT names them, and the server ends their connections.

Derived from the log: whoever was revoked is told to the server again after every start. A revocation
that is older than the life of any JWT changes nothing any more and is left out.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from nats.errors import Error as NatsError
from pydantic import BaseModel

from command_api.messaging.connection import UNREACHABLE, connect
from command_api.messaging.follower import Follower
from command_api.nats_auth.accounts import agents_account
from command_api.nats_auth.keys import public_key
from command_api.settings import NatsOperatorSettings
from schemas.settings import NatsAccount, NatsSettings

logger = logging.getLogger(__name__)

CLAIMS_SUBJECT = "$SYS.REQ.CLAIMS.UPDATE"
ANSWER_SECONDS = 5.0
RETRY_SECONDS = 2.0


class _Failure(BaseModel):
    description: str = ""


class _Answer(BaseModel):
    error: _Failure | None = None


def covers(told: Mapping[str, int], revoked: Mapping[str, int]) -> bool:
    """Whether a server that was told of `told` shuts out everybody of `revoked`, until the same second."""
    return all(told.get(key, 0) >= until for key, until in revoked.items())


class Revocations:
    """Keeps the server's idea of the account level with the log."""

    def __init__(self, follower: Follower, nats: NatsSettings, operator: NatsOperatorSettings | None) -> None:
        self._follower = follower
        self._nats = nats
        self._operator = operator
        self._changed = follower.changed()
        self._told: dict[str, int] = {}

    async def run(self) -> None:
        """Tell the server of every change, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            revoked = self._revoked()
            if covers(self._told, revoked):
                continue
            if self._operator is None:
                logger.warning(
                    "nats_operator is not set: a revoked agent is refused everywhere, but stays connected"
                    " until its JWT expires"
                )
            elif not await self._tell(self._operator, revoked):
                await asyncio.sleep(RETRY_SECONDS)
                self._changed.set()
                continue
            self._told = revoked

    def _revoked(self) -> dict[str, int]:
        oldest = datetime.now(UTC) - timedelta(seconds=self._nats.user_seconds)
        voided = self._follower.board.void_keys
        # Up to the end of that second: a JWT that was signed within it is void, too.
        return {key: int(at.timestamp()) + 1 for key, at in voided.items() if at > oldest}

    async def _tell(self, operator: NatsOperatorSettings, revoked: dict[str, int]) -> bool:
        claims = agents_account(
            self._nats, operator.operator_seed.get_secret_value(), issued_at=int(time.time()), revoked=revoked
        )
        system_seed = operator.system_seed
        system = NatsAccount(account=public_key(system_seed.get_secret_value()), signing_seed=system_seed)
        nats = self._nats.model_copy(update={"control": system})
        try:
            async with connect(nats, "kinora-orchestrator-accounts") as client:
                reply = await client.request(CLAIMS_SUBJECT, claims.encode(), timeout=ANSWER_SECONDS)
        except (*UNREACHABLE, NatsError) as error:
            logger.warning("revocations: %s; trying again", str(error) or type(error).__name__)
            return False
        answer = _Answer.model_validate_json(reply.data)
        if answer.error is not None:
            logger.error("revocations: NATS refused the account: %s", answer.error.description)
            return False
        logger.info("revocations: %d keys are shut out of NATS", len(revoked))
        return True
