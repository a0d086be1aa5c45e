"""The users that the control plane signs: its own processes', the agents' and the subscribers'."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from nats.aio.client import RawCredentials

from command_api.nats_auth.jwts import user_jwt
from command_api.nats_auth.keys import new_seed, public_key
from command_api.nats_auth.rights import EVERYTHING, Rights, agent_rights, inbox_of, subscriber_rights
from schemas.settings import NatsAccount, NatsSettings

RENEW_AT = 2 / 3
"""The part of a JWT's life after which its holder asks for the next one."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A JWT. It is of no use without the seed of the user that it names, so it may be shown to anybody."""

    jwt: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Issuer:
    """Signs users of one account, for `seconds` from now. The clock is an argument."""

    account: NatsAccount
    seconds: int
    clock: Callable[[], float] = time.time

    def user(self, user: str, name: str, rights: Rights) -> Signed:
        """The right to be `user` (a public key) from now on."""
        now = self.clock()
        # JWTs count whole seconds: never fewer than promised.
        expires_at = math.ceil(now) + self.seconds
        token = user_jwt(
            self.account.signing_seed.get_secret_value(),
            self.account.account,
            user,
            name=name,
            rights=rights,
            issued_at=int(now),
            expires_at=expires_at,
        )
        return Signed(token, datetime.fromtimestamp(expires_at, UTC))


def signed_agent(nats: NatsSettings, user: str, organization_id: str, agent_id: str, pool: str) -> Signed:
    """The right to be an agent, for whoever holds this key."""
    issuer = Issuer(nats.agents, nats.user_seconds)
    return issuer.user(user, agent_id, agent_rights(organization_id, agent_id, pool))


def signed_subscriber(
    nats: NatsSettings, user: str, organization_id: str, subscription_id: str, seconds: int
) -> Signed:
    """The right to read the one consumer of EVENTS that was made for it, for whoever holds this key."""
    rights = subscriber_rights(organization_id, subscription_id)
    return Issuer(nats.subscribers, seconds).user(user, subscription_id, rights)


@dataclass
class ControlUser:
    """One connection of the control plane: a key of its own, and a new JWT for every connect."""

    issuer: Issuer
    name: str
    rights: Callable[[str], Rights] = lambda _user: EVERYTHING
    seed: str = field(default_factory=lambda: new_seed("user"), repr=False)
    signed_at: float = field(default_factory=time.monotonic)
    """When the last JWT was made, in monotonic seconds."""

    @classmethod
    def of(
        cls, nats: NatsSettings, name: str, rights: Callable[[str], Rights] = lambda _user: EVERYTHING
    ) -> Self:
        """A user of the control plane's own account."""
        return cls(Issuer(nats.control, nats.user_seconds), name, rights)

    @property
    def public_key(self) -> str:
        return public_key(self.seed)

    @property
    def inbox_prefix(self) -> str:
        return inbox_of(self.public_key)

    @property
    def due(self) -> float:
        """When it should connect again, in monotonic seconds: before the server ends the connection."""
        return self.signed_at + self.issuer.seconds * RENEW_AT

    def text(self) -> str:
        """Credentials as nats-py reads them, with a JWT made now."""
        self.signed_at = time.monotonic()
        user = self.public_key
        return credentials_text(self.issuer.user(user, self.name, self.rights(user)).jwt, self.seed)


def credentials_text(jwt: str, seed: str) -> str:
    """The content of a NATS credentials file."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


class FreshCredentials(RawCredentials):
    """Credentials that are made anew whenever nats-py reads them, which it does at every reconnect.

    Its callbacks for a JWT and a signature would be the plain way, but 2.16 ignores them unless another
    kind of credentials is given too.
    """

    def __init__(self, text: Callable[[], str]) -> None:  # not the base's: it would keep a copy
        self._text = text

    @property
    def data(self) -> str:  # type: ignore[override]
        return self._text()
