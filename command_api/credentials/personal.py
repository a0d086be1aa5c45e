"""Personal fields are ciphertext under a key per person, and that key is wrapped by the control plane's."""

import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import Cursor
from psycopg.rows import DictRow

from schemas.errors import KinoraError

NONCE_BYTES = 12
FORMAT = "p1."
"""Leads every ciphertext, so that another cipher can follow one day."""


class Unreadable(KinoraError):
    """A personal field cannot be decrypted: its key was deleted, or belongs to somebody else."""

    code = "personal_field_unreadable"


@dataclass(frozen=True, slots=True)
class PersonKey:
    """One person's key, in the clear: keep it no longer than a request lasts."""

    user_id: str
    key: bytes = field(repr=False)

    @classmethod
    def new(cls, user_id: str) -> "PersonKey":
        return cls(user_id, AESGCM.generate_key(bit_length=256))

    def encrypt(self, text: str) -> str:
        return FORMAT + urlsafe_b64encode(_seal(self.key, text.encode(), self.user_id)).decode()

    def decrypt(self, ciphertext: str) -> str:
        """The text behind a ciphertext.

        Raises:
            Unreadable: when it was not made with this person's key.
        """
        if not ciphertext.startswith(FORMAT):
            raise Unreadable(f"a personal field of {self.user_id} is in an unknown format; upgrade Kinora")
        try:
            sealed = urlsafe_b64decode(ciphertext.removeprefix(FORMAT))
        except NotBase64 as error:
            raise Unreadable(f"a personal field of {self.user_id} is damaged") from error
        return _unseal(self.key, sealed, self.user_id).decode()


class PersonKeys:
    """Wraps and unwraps persons' keys with the control plane's personal key."""

    def __init__(self, personal_key: bytes) -> None:
        self._personal_key = personal_key

    def wrap(self, person: PersonKey) -> bytes:
        return _seal(self._personal_key, person.key, person.user_id)

    def unwrap(self, user_id: str, wrapped: bytes) -> PersonKey:
        return PersonKey(user_id, _unseal(self._personal_key, wrapped, user_id))


@dataclass(frozen=True, slots=True)
class PersonKeyRow:
    """A new person's wrapped key."""

    user_id: str
    wrapped_key: bytes

    def write(self, cursor: Cursor[DictRow]) -> None:
        cursor.execute(
            "INSERT INTO kinora_person_keys (user_id, wrapped_key) VALUES (%s, %s)",
            (self.user_id, self.wrapped_key),
        )


def _seal(key: bytes, data: bytes, owner: str) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data, owner.encode())


def _unseal(key: bytes, sealed: bytes, owner: str) -> bytes:
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], owner.encode())
    except (InvalidTag, ValueError) as error:
        raise Unreadable(f"personal data of {owner} cannot be decrypted; check personal_key_hex") from error
