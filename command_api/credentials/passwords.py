"""Password hashes: argon2id; bcrypt is still verified, and replaced when its owner logs in."""

import unicodedata
from dataclasses import dataclass

from psycopg import Cursor
from psycopg.rows import DictRow
from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError
from pwdlib.hashers.argon2 import Argon2Hasher
from pwdlib.hashers.bcrypt import BcryptHasher


@dataclass(frozen=True, slots=True)
class PasswordCheck:
    """Whether a password was right, and its hash anew where the old one is outdated."""

    right: bool
    new_hash: str | None = None


class Passwords:
    """Hashes and checks. Each call costs some 100 ms of processor time: never on the event loop."""

    def __init__(self) -> None:
        self._hashes = PasswordHash((Argon2Hasher(), BcryptHasher()))
        # Checked in place of a missing hash, so that an unknown name takes as long as a wrong password.
        self._decoy = self._hashes.hash("no password at all")

    def hash(self, password: str) -> str:
        return self._hashes.hash(_composed(password))

    def check(self, password: str, stored: str | None) -> PasswordCheck:
        """Takes as long without a stored hash as with one."""
        try:
            right, new_hash = self._hashes.verify_and_update(_composed(password), stored or self._decoy)
        except (PwdlibError, ValueError):
            # bcrypt refuses passwords over 72 bytes; a hash of no known kind fits no password.
            return PasswordCheck(right=False)
        return PasswordCheck(right and stored is not None, new_hash if stored else None)


def _composed(password: str) -> str:
    """The same password from every keyboard: some send é as one character, some as two (RFC 8265)."""
    return unicodedata.normalize("NFC", password)


@dataclass(frozen=True, slots=True)
class PasswordRow:
    """A person's password hash, new or replaced."""

    user_id: str
    hash: str

    def write(self, cursor: Cursor[DictRow]) -> None:
        cursor.execute(
            "INSERT INTO kinora_passwords (user_id, hash) VALUES (%s, %s)"
            " ON CONFLICT (user_id) DO UPDATE SET hash = excluded.hash, updated_at = now()",
            (self.user_id, self.hash),
        )
