"""Who runs the installation: whoever signed up first. What all organizations share is theirs to rebuild."""

from dataclasses import dataclass

from psycopg import Cursor
from psycopg.rows import DictRow

CREATE_TABLE = """
    CREATE TABLE IF NOT EXISTS kinora_operators (
        user_id text PRIMARY KEY,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """

APPOINT_FIRST = """
    INSERT INTO kinora_operators (user_id)
    SELECT user_id FROM kinora_memberships WHERE NOT EXISTS (SELECT FROM kinora_operators)
    ORDER BY created_at, user_id LIMIT 1
    """
"""For installations that are older than the table."""


@dataclass(frozen=True, slots=True)
class FirstOperatorRow:
    """Makes a new person the operator when nobody signed up before them; sign-ups commit one by one."""

    user_id: str

    def write(self, cursor: Cursor[DictRow]) -> None:
        cursor.execute(
            "INSERT INTO kinora_operators (user_id) SELECT %s"
            " WHERE NOT EXISTS (SELECT FROM kinora_operators)"
            " AND NOT EXISTS (SELECT FROM kinora_memberships WHERE user_id <> %s)"
            " ON CONFLICT (user_id) DO NOTHING",
            (self.user_id, self.user_id),
        )
