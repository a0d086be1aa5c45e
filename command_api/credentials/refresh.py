"""Refresh tokens: opaque, stored hashed, each good for one use; all that follow from a login are a family."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg import AsyncConnection, Cursor
from psycopg.rows import DictRow, TupleRow

from schemas.ids import uuid7

PREFIX = "knr_rt_"
"""Lets people and scanners recognise a leaked token."""


def new_refresh_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> bytes:
    """Plain SHA-256 is enough: the token has 256 random bits, so there is nothing to guess."""
    return hashlib.sha256(token.encode()).digest()


@dataclass(frozen=True, slots=True)
class Family:
    """The tokens of one login."""

    family_id: str
    user_id: str
    organization_id: str
    workspace_id: str

    @classmethod
    def new(cls, user_id: str, organization_id: str, workspace_id: str) -> "Family":
        return cls(f"fam_{uuid7().hex}", user_id, organization_id, workspace_id)


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """A new family with its first token."""

    family: Family
    token: str
    expires_at: datetime

    def write(self, cursor: Cursor[DictRow]) -> None:
        f = self.family
        cursor.execute(
            "INSERT INTO kinora_refresh_families (family_id, user_id, organization_id, workspace_id)"
            " VALUES (%s, %s, %s, %s)",
            (f.family_id, f.user_id, f.organization_id, f.workspace_id),
        )
        cursor.execute(
            "INSERT INTO kinora_refresh_tokens (token_hash, family_id, expires_at) VALUES (%s, %s, %s)",
            (token_hash(self.token), f.family_id, self.expires_at),
        )


@dataclass(frozen=True, slots=True)
class FamilyRevokedRow:
    """Voids every token of a family."""

    family_id: str

    def write(self, cursor: Cursor[DictRow]) -> None:
        cursor.execute(
            "UPDATE kinora_refresh_families SET revoked_at = now()"
            " WHERE family_id = %s AND revoked_at IS NULL",
            (self.family_id,),
        )


Standing = Literal["fresh", "used", "revoked", "expired", "unknown"]

STANDING = """
    SELECT f.family_id, f.user_id, f.organization_id, f.workspace_id,
           CASE WHEN f.revoked_at IS NOT NULL THEN 'revoked'
                WHEN t.used_at IS NOT NULL THEN 'used'
                WHEN t.expires_at <= %s THEN 'expired'
                ELSE 'fresh' END
    FROM kinora_refresh_tokens t JOIN kinora_refresh_families f USING (family_id)
    WHERE t.token_hash = %s
    FOR UPDATE
"""


async def standing_of(
    connection: AsyncConnection[TupleRow], token: str, now: datetime
) -> tuple[Standing, Family | None]:
    """What a presented token is worth, holding its row and its family's until the transaction ends."""
    cursor = await connection.execute(STANDING, (now, token_hash(token)))
    row = await cursor.fetchone()
    if row is None:
        return "unknown", None
    family_id, user_id, organization_id, workspace_id, standing = row
    return standing, Family(family_id, user_id, organization_id, workspace_id)


async def rotate(
    connection: AsyncConnection[TupleRow], family: Family, old: str, new: str, expires_at: datetime
) -> None:
    """Spend one token for the next of its family."""
    await connection.execute(
        "UPDATE kinora_refresh_tokens SET used_at = now() WHERE token_hash = %s", (token_hash(old),)
    )
    await connection.execute(
        "INSERT INTO kinora_refresh_tokens (token_hash, family_id, expires_at) VALUES (%s, %s, %s)",
        (token_hash(new), family.family_id, expires_at),
    )
