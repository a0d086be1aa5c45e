"""Tickets: how a browser, which cannot send a header with a WebSocket or an EventSource, shows who it is.

A ticket stands in an address, where much else may read it: so it lasts for seconds, opens one feed, and is
kept as a hash only. It is in the database because the feed may be opened at another API process.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from command_api.auth.errors import TicketInvalid
from command_api.auth.tokens import Principal

SECONDS = 30

TABLE = """
CREATE TABLE IF NOT EXISTS kinora_feed_tickets (
    ticket_hash bytea PRIMARY KEY,
    user_id text NOT NULL,
    organization_id text NOT NULL,
    workspace_id text NOT NULL,
    scopes text[] NOT NULL,
    token_expires_at double precision NOT NULL,
    expires_at timestamptz NOT NULL
)
"""

_ISSUE = """
INSERT INTO kinora_feed_tickets
VALUES (%s, %s, %s, %s, %s, %s, now() + make_interval(secs => %s))
RETURNING expires_at
"""

_REDEEM = """
DELETE FROM kinora_feed_tickets
 WHERE ticket_hash = %s
RETURNING user_id, organization_id, workspace_id, scopes, token_expires_at, expires_at > now()
"""

_SWEEP = "DELETE FROM kinora_feed_tickets WHERE expires_at <= now()"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the caller gets, once."""

    text: str
    expires_at: datetime


class Tickets:
    """Issues and takes tickets, by the clock of the database, which all processes share."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], *, seconds: float = SECONDS) -> None:
        self._pool = pool
        self._seconds = seconds

    async def issue(self, caller: Principal) -> Ticket:
        """A ticket for whoever holds the caller's access token, with no more rights and for no longer."""
        text = f"tkt_{secrets.token_urlsafe(32)}"
        async with self._pool.connection() as connection:
            await connection.execute(_SWEEP)
            cursor = await connection.execute(
                _ISSUE,
                (
                    _hash(text),
                    caller.user_id,
                    caller.organization_id,
                    caller.workspace_id,
                    list(caller.scopes),
                    caller.expires_at,
                    self._seconds,
                ),
            )
            row = await cursor.fetchone()
        assert row is not None  # noqa: S101 - INSERT … RETURNING of one row
        return Ticket(text, row[0])

    async def redeem(self, text: str) -> Principal:
        """Who got the ticket; it is used up.

        Raises:
            TicketInvalid: it was used before, is too old, or never was one.
        """
        async with self._pool.connection() as connection:
            row = await (await connection.execute(_REDEEM, (_hash(text),))).fetchone()
        if row is None or not row[5]:
            raise TicketInvalid(
                "the ticket was used, is too old, or was not issued here; get one at POST /events/tickets"
            )
        return Principal(row[0], row[1], row[2], tuple(row[3]), row[4])


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
