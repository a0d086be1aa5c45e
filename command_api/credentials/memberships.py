"""Where a person belongs, as a login needs it before any token names an organization."""

from dataclasses import dataclass

from psycopg import Cursor
from psycopg.rows import DictRow

from schemas.events.identity import Role


@dataclass(frozen=True, slots=True)
class Membership:
    """A person's place in one workspace; as a row it is written with the command that grants it."""

    user_id: str
    organization_id: str
    workspace_id: str
    role: Role

    def write(self, cursor: Cursor[DictRow]) -> None:
        cursor.execute(
            "INSERT INTO kinora_memberships (user_id, organization_id, workspace_id, role)"
            " VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (user_id, organization_id, workspace_id) DO UPDATE SET role = excluded.role",
            (self.user_id, self.organization_id, self.workspace_id, self.role),
        )
