"""Makes user names and e-mail addresses unique while storing only a keyed hash of them."""

import hashlib
import hmac
import unicodedata
from dataclasses import dataclass
from typing import Literal

from psycopg import Cursor
from psycopg.rows import DictRow

from command_api.domain.errors import Conflict
from schemas.errors import FieldError

NameKind = Literal["username", "email"]


def normal(text: str) -> str:
    """What counts as the same name: case, width and surrounding space make no difference."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).strip().casefold())


def name_digest(index_key: bytes, kind: NameKind, text: str) -> bytes:
    """The keyed hash of a name; without the key nobody can try names out against the table."""
    return hmac.digest(index_key, f"name\0{kind}\0{normal(text)}".encode(), hashlib.sha256)


@dataclass(frozen=True, slots=True)
class UniqueNameRow:
    """Takes a name for a person, or refuses the command."""

    kind: NameKind
    digest: bytes
    user_id: str

    def write(self, cursor: Cursor[DictRow]) -> None:
        cursor.execute(
            "INSERT INTO kinora_unique_names (kind, digest, user_id) VALUES (%s, %s, %s)"
            " ON CONFLICT (kind, digest) DO NOTHING",
            (self.kind, self.digest, self.user_id),
        )
        if cursor.rowcount == 0:
            spelled = "user name" if self.kind == "username" else "e-mail address"
            code, message = f"{self.kind}_taken", f"this {spelled} is taken; choose another, or log in"
            raise Conflict(
                message,
                code=code,
                errors=(FieldError(pointer=f"/{self.kind}", code=code, message=message),),
            )
