"""Signing secrets of webhooks, sealed; and the rows by which an organization's subscriptions are counted.

A secret that was replaced signs beside the new one for a while, so that a receiver can be changed over
without losing a delivery.
"""

import base64
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from psycopg import AsyncConnection, Cursor
from psycopg.rows import DictRow

from command_api.credentials.sealing import Sealer
from command_api.domain.errors import Conflict
from command_api.settings import ControlSecrets

PREFIX = "whsec_"
"""As Standard Webhooks has it: its libraries take the secret as it is."""
_SECRET_BYTES = 32
_PURPOSE = b"kinora webhook secrets v1"

CREATE_TABLE = """
    CREATE TABLE IF NOT EXISTS kinora_subscriptions (
        subscription_id text PRIMARY KEY,
        organization_id text NOT NULL,
        sealed bytea,
        former_sealed bytea,
        former_until timestamptz
    )
    """
"""`sealed`: a webhook's signing secret; the seed of a NATS subscriber's key is kept by nobody but them."""

CREATE_INDEX = """
    CREATE INDEX IF NOT EXISTS kinora_subscriptions_organization_idx ON kinora_subscriptions (organization_id)
    """


def new_signing_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


@dataclass(frozen=True, slots=True)
class SubscriptionRow:
    """A new subscription; refuses the command when the organization has as many as it may."""

    subscription_id: str
    organization_id: str
    most: int
    sealed: bytes | None = field(default=None, repr=False)

    def write(self, cursor: Cursor[DictRow]) -> None:
        # Commands commit one by one, so nobody is counted beside.
        cursor.execute(
            "INSERT INTO kinora_subscriptions (subscription_id, organization_id, sealed)"
            " SELECT %s, %s, %s"
            " WHERE (SELECT count(*) FROM kinora_subscriptions WHERE organization_id = %s) < %s",
            (self.subscription_id, self.organization_id, self.sealed, self.organization_id, self.most),
        )
        if cursor.rowcount == 0:
            raise Conflict(
                f"the organization has {self.most} subscriptions, the most there may be;"
                " delete one that is not needed",
                code="too_many_subscriptions",
            )


@dataclass(frozen=True, slots=True)
class SecretRotatedRow:
    """Replaces a webhook's secret; the former one signs beside it until then."""

    subscription_id: str
    former_until: datetime
    sealed: bytes = field(repr=False)

    def write(self, cursor: Cursor[DictRow]) -> None:
        cursor.execute(
            "UPDATE kinora_subscriptions SET former_sealed = sealed, former_until = %s, sealed = %s"
            " WHERE subscription_id = %s",
            (self.former_until, self.sealed, self.subscription_id),
        )


@dataclass(frozen=True, slots=True)
class SubscriptionGoneRow:
    """Forgets a deleted subscription's secrets."""

    subscription_id: str

    def write(self, cursor: Cursor[DictRow]) -> None:
        cursor.execute("DELETE FROM kinora_subscriptions WHERE subscription_id = %s", (self.subscription_id,))


class WebhookSecrets:
    """Seals the secrets and opens them for whoever signs deliveries."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    @classmethod
    def from_secrets(cls, secrets: ControlSecrets) -> Self:
        return cls(Sealer.from_secrets(secrets, _PURPOSE))

    def seal(self, subscription_id: str, secret: str) -> bytes:
        return self._sealer.seal(secret.encode(), subscription_id)

    async def signing(
        self, connection: AsyncConnection[Any], subscription_id: str, now: datetime
    ) -> tuple[str, ...]:
        """The secrets to sign with, the newest first; none when the subscription is gone.

        Raises:
            SecretUnreadable: when the keys do not open them.
        """
        cursor = await connection.execute(
            "SELECT sealed, CASE WHEN former_until > %s THEN former_sealed END"
            " FROM kinora_subscriptions WHERE subscription_id = %s",
            (now, subscription_id),
        )
        row = await cursor.fetchone()
        found = () if row is None else row
        return tuple(
            self._sealer.open(bytes(sealed), subscription_id).decode()
            for sealed in found
            if sealed is not None
        )
