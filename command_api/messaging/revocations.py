"""Cuts void keys off NATS at once: their account's JWT names them, and the server ends their connections.

Of agents that were revoked or replaced, and of subscribers that ended or were given new credentials. Derived
from the log: whoever is shut out is told to the server again after every start and reconnect. A revocation
that is older than the life of the JWT changes nothing any more and is left out.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal

from nats.errors import Error as NatsError
from pydantic import BaseModel

from command_api.messaging.connection import UNREACHABLE, connect
from command_api.messaging.follower import Follower
from command_api.nats_auth.accounts import agents_account, subscribers_account
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


Account = Literal["agents", "subscribers"]
Revoked = dict[str, int]
"""Until which second what was signed for a public key is void."""


class Revocations:
    """Keeps the server's idea of the accounts level with the log."""

    def __init__(self, follower: Follower, nats: NatsSettings, operator: NatsOperatorSettings | None) -> None:
        self._follower = follower
        self._nats = nats
        self._operator = operator
        self._changed = follower.changed()
        self._told: dict[Account, Revoked] = {}

    def tell_again(self) -> None:
        """After a reconnect the server may have been started anew, with the accounts of its configuration."""
        self._told = {}
        self._changed.set()

    async def run(self) -> None:
        """Tell the server of every change, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            for account, revoked in self._revoked(datetime.now(UTC)).items():
                await self._settle(account, revoked)

    async def _settle(self, account: Account, revoked: Revoked) -> None:
        if covers(self._told.get(account, {}), revoked):
            return
        if self._operator is None:
            logger.warning(
                "nats_operator is not set: a void key of the account %s is refused everywhere, but stays"
                " connected until its JWT expires",
                account,
            )
        elif not await self._tell(self._operator, account, revoked):
            await asyncio.sleep(RETRY_SECONDS)
            self._changed.set()
            return
        self._told[account] = revoked

    def _revoked(self, now: datetime) -> dict[Account, Revoked]:
        board = self._follower.board
        oldest = now - timedelta(seconds=self._nats.user_seconds)
        # Up to the end of that second: a JWT that was signed within it is void, too.
        return {
            "agents": {key: _until(at) for key, at in board.void_keys.items() if at > oldest},
            "subscribers": {
                key: _until(void.since)
                for key, void in board.subscriptions.void_keys.items()
                if void.expires_at > now
            },
        }

    async def _tell(self, operator: NatsOperatorSettings, account: Account, revoked: Revoked) -> bool:
        sign = {"agents": agents_account, "subscribers": subscribers_account}[account]
        claims = sign(
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
            logger.error("revocations: NATS refused the account %s: %s", account, answer.error.description)
            return False
        logger.info("revocations: %d keys are shut out of the account %s", len(revoked), account)
        return True


def _until(at: datetime) -> int:
    return int(at.timestamp()) + 1
