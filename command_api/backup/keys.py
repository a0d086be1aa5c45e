"""The keys of an installation, sealed by a passphrase: without them nobody can log in to what is restored.

scrypt makes a key of the passphrase (RFC 7914), AES-256-GCM seals, and the backup's id is authenticated with
it, so that the keys of one backup are not taken for another's.
"""

import os
from base64 import b64decode, b64encode
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import Field, ValidationError

from command_api.backup.errors import BackupDamaged, KeysLocked
from schemas.base import Message

MIN_PASSPHRASE = 8
_SALT_BYTES, _NONCE_BYTES, _KEY_BYTES = 16, 12, 32


class SealedKeys(Message):
    """The file: how the passphrase becomes a key, and what that key seals."""

    kdf: Literal["scrypt"] = "scrypt"
    n: int = Field(2**17, ge=2**14, le=2**20)
    """128 MiB and some tenths of a second for every try; bounded, because the file may be anybody's."""
    r: Literal[8] = 8
    p: Literal[1] = 1
    salt: str
    cipher: Literal["aes-256-gcm"] = "aes-256-gcm"
    nonce: str
    sealed: str


def seal(passphrase: str, content: bytes, backup_id: str) -> bytes:
    """The file that only `passphrase` opens.

    Raises:
        KeysLocked: when the passphrase is too short to protect anything.
    """
    if len(passphrase) < MIN_PASSPHRASE:
        raise KeysLocked(
            f"the passphrase has {len(passphrase)} characters; use at least {MIN_PASSPHRASE}: it protects"
            " every key of the installation"
        )
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    draft = SealedKeys(salt=_text(salt), nonce=_text(nonce), sealed="")
    sealed = AESGCM(_key(draft, passphrase)).encrypt(nonce, content, backup_id.encode())
    return draft.model_copy(update={"sealed": _text(sealed)}).model_dump_json(indent=2).encode() + b"\n"


def unseal(passphrase: str, file: bytes, backup_id: str) -> bytes:
    """What was sealed.

    Raises:
        KeysLocked: when it is not the passphrase.
        BackupDamaged: when the file is not one of `seal`.
    """
    try:
        box = SealedKeys.model_validate_json(file)
        nonce, sealed = b64decode(box.nonce, validate=True), b64decode(box.sealed, validate=True)
        key = _key(box, passphrase)
    except (ValidationError, ValueError) as error:
        raise BackupDamaged(f"the sealed keys are damaged: {error}; use another backup") from None
    try:
        return AESGCM(key).decrypt(nonce, sealed, backup_id.encode())
    except (InvalidTag, ValueError):
        raise KeysLocked("the passphrase does not open the keys of this backup; try another") from None


def _key(box: SealedKeys, passphrase: str) -> bytes:
    salt = b64decode(box.salt, validate=True)
    return Scrypt(salt=salt, length=_KEY_BYTES, n=box.n, r=box.r, p=box.p).derive(passphrase.encode())


def _text(data: bytes) -> str:
    return b64encode(data).decode()
