"""Forgetting a person: every row that is theirs goes in the transaction that records it.

The log keeps its events, and with them every proof: what is personal in them is ciphertext, and its key goes.
"""

from dataclasses import dataclass
from typing import LiteralString

from psycopg import Cursor
from psycopg.rows import DictRow

from command_api.domain.errors import Conflict

# In this order: a sign-up's command row is found by the digest of the name.
_STATEMENTS: tuple[str, ...] = (
    """
    DELETE FROM kinora_commands
     WHERE principal = %(user_id)s
        OR principal IN (
            SELECT 'signup:' || encode(digest, 'hex') FROM kinora_unique_names
             WHERE user_id = %(user_id)s AND kind = 'username'
        )
    """,
    # What receivers answered to events of theirs. What is due is still delivered: it says nothing of them.
    """
    DELETE FROM kinora_webhook_deliveries AS delivery USING kinora_events AS event
     WHERE event.event_id = delivery.event_id AND event.actor = %(user_id)s AND delivery.status <> 'pending'
    """,
    """
    UPDATE kinora_webhook_deliveries AS delivery SET attempts = '[]' FROM kinora_events AS event
     WHERE event.event_id = delivery.event_id AND event.actor = %(user_id)s AND delivery.attempts <> '[]'
    """,
    "DELETE FROM kinora_feed_tickets WHERE user_id = %(user_id)s",
    "DELETE FROM kinora_unique_names WHERE user_id = %(user_id)s",
    "DELETE FROM kinora_passwords WHERE user_id = %(user_id)s",
    "DELETE FROM kinora_refresh_families WHERE user_id = %(user_id)s",
    "DELETE FROM kinora_memberships WHERE user_id = %(user_id)s",
    "DELETE FROM kinora_operators WHERE user_id = %(user_id)s",
    "DELETE FROM kinora_person_keys WHERE user_id = %(user_id)s",
)

_LAST_OPERATOR = """
    SELECT EXISTS (SELECT FROM kinora_operators WHERE user_id = %(user_id)s)
       AND NOT EXISTS (SELECT FROM kinora_operators WHERE user_id <> %(user_id)s)
       AND EXISTS (SELECT FROM kinora_memberships WHERE user_id <> %(user_id)s) AS last
    """

NOW: LiteralString = "SELECT pg_snapshot_xmax(pg_current_snapshot())::xid::text"
STILL_SEEN: LiteralString = """
    SELECT EXISTS (
        SELECT FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()
           AND greatest(age(backend_xmin), age(backend_xid)) > age(%s::text::xid))
    """
"""Whether a transaction goes on that began before `NOW`: for it, PostgreSQL keeps what was deleted."""

OVERWRITE: LiteralString = "VACUUM (FULL) kinora_person_keys"
"""Writes the table anew without what was deleted: until then a deleted key's bytes lie in its pages."""


@dataclass(frozen=True, slots=True)
class ErasureRow:
    """Deletes everything that is one person's, or refuses: ``last_operator``."""

    user_id: str

    def write(self, cursor: Cursor[DictRow]) -> None:
        whose = {"user_id": self.user_id}
        row = cursor.execute(_LAST_OPERATOR, whose).fetchone()
        if row is not None and row["last"]:
            raise Conflict(
                f"{self.user_id} is the only operator of this installation, and others use it; erase those"
                " first",
                code="last_operator",
            )
        for statement in _STATEMENTS:
            cursor.execute(statement, whose)
