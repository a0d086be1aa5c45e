"""Enrolment tokens: opaque, stored hashed; each lets one node become the agent that it was issued for."""

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg import AsyncConnection, Cursor
from psycopg.rows import DictRow, TupleRow

from command_api.credentials.refresh import token_hash
from command_api.domain.errors import Conflict

PREFIX = "knr_en_"
"""Lets people and scanners recognise a leaked token."""

CREATE_TABLE = """
    CREATE TABLE IF NOT EXISTS kinora_enrolment_tokens (
        token_hash bytea PRIMARY KEY,
        agent_id text NOT NULL,
        organization_id text NOT NULL,
        workspace_id text NOT NULL,
        expires_at timestamptz NOT NULL,
        public_key text
    )
    """
"""`public_key` is that of the node that spent the token."""

CREATE_INDEX = """
    CREATE INDEX IF NOT EXISTS kinora_enrolment_tokens_agent_idx ON kinora_enrolment_tokens (agent_id)
    """


def new_enrolment_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a token stands for."""

    agent_id: str
    organization_id: str
    workspace_id: str


@dataclass(frozen=True, slots=True)
class EnrolmentRow:
    """A new token. The agent's earlier ones are void unless a node has spent them."""

    enrolment: Enrolment
    token: str
    expires_at: datetime

    def write(self, cursor: Cursor[DictRow]) -> None:
        e = self.enrolment
        cursor.execute(
            "DELETE FROM kinora_enrolment_tokens WHERE agent_id = %s AND public_key IS NULL", (e.agent_id,)
        )
        cursor.execute(
            "INSERT INTO kinora_enrolment_tokens"
            " (token_hash, agent_id, organization_id, workspace_id, expires_at) VALUES (%s, %s, %s, %s, %s)",
            (token_hash(self.token), e.agent_id, e.organization_id, e.workspace_id, self.expires_at),
        )


@dataclass(frozen=True, slots=True)
class EnrolmentSpentRow:
    """Spends a token for a node, or refuses the command: another node was faster.

    The tokens of nodes before it are void from then on: repeating one would take the agent back.
    """

    agent_id: str
    token: str
    public_key: str

    def write(self, cursor: Cursor[DictRow]) -> None:
        cursor.execute(
            "UPDATE kinora_enrolment_tokens SET public_key = %s"
            " WHERE token_hash = %s AND (public_key IS NULL OR public_key = %s)",
            (self.public_key, token_hash(self.token), self.public_key),
        )
        if cursor.rowcount == 0:
            raise used()
        cursor.execute(
            "DELETE FROM kinora_enrolment_tokens"
            " WHERE agent_id = %s AND token_hash <> %s AND public_key IS NOT NULL",
            (self.agent_id, token_hash(self.token)),
        )


def used() -> Conflict:
    """Why a second node is turned away."""
    return Conflict(
        "another node has joined with this enrolment token; issue a new one for this node",
        code="enrolment_token_used",
    )


Standing = Literal["fresh", "spent_by_you", "used", "expired", "unknown"]


async def standing_of(
    connection: AsyncConnection[TupleRow], token: str, public_key: str, now: datetime
) -> tuple[Standing, Enrolment | None]:
    """What a token is worth to the node with this key."""
    cursor = await connection.execute(
        "SELECT agent_id, organization_id, workspace_id, expires_at, public_key"
        " FROM kinora_enrolment_tokens WHERE token_hash = %s",
        (token_hash(token),),
    )
    row = await cursor.fetchone()
    if row is None:
        return "unknown", None
    enrolment = Enrolment(*row[:3])
    expires_at, spent_by = row[3:]
    if spent_by is not None and spent_by != public_key:
        return "used", enrolment
    if expires_at <= now:
        return "expired", enrolment
    return ("fresh" if spent_by is None else "spent_by_you"), enrolment
