"""NATS's Ed25519 keys as text: a seed (secret, ``S…``) and the public key that stands for its owner."""

import base64
import binascii
import secrets
from typing import Literal

import nkeys
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

Kind = Literal["operator", "account", "user"]

_PREFIXES: dict[Kind, int] = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}
_KEY_BYTES, _CHECKSUM_BYTES = 32, 2


class NotAKey(ValueError):
    """The text is no NATS key of the kind that is wanted."""


def new_seed(kind: Kind) -> str:
    """A fresh secret key."""
    return bytes(nkeys.encode_seed(secrets.token_bytes(_KEY_BYTES), _PREFIXES[kind])).decode()


def public_key(seed: str) -> str:
    """The name that a seed's owner goes by: ``O…``, ``A…`` or ``U…``."""
    return bytes(_pair(seed).public_key).decode().rstrip("=")


def sign(seed: str, message: bytes) -> bytes:
    """The 64-byte Ed25519 signature of `message`."""
    return bytes(_pair(seed).sign(message))


def raw_public_key(text: str, kind: Kind) -> bytes:
    """The 32 bytes behind a public key.

    Raises:
        NotAKey: when the text is damaged, or a key of another kind.
    """
    try:
        decoded = base64.b32decode(text.encode() + b"=" * (-len(text) % 8))
    except (binascii.Error, UnicodeEncodeError) as error:
        raise NotAKey("it is not base 32") from error
    body, checksum = decoded[:-_CHECKSUM_BYTES], decoded[-_CHECKSUM_BYTES:]
    if len(body) != 1 + _KEY_BYTES or bytes(nkeys.crc16_checksum(body)) != checksum:
        raise NotAKey("its length or its checksum is wrong")
    if body[0] != _PREFIXES[kind]:
        raise NotAKey(f"it is no public key of NATS kind {kind}")
    return body[1:]


def is_signed_by(public: str, message: bytes, signature: bytes) -> bool:
    """Whether the user with this public key signed `message`."""
    try:
        VerifyKey(raw_public_key(public, "user")).verify(message, signature)
    except (BadSignatureError, ValueError):
        return False
    return True


def _pair(seed: str) -> nkeys.KeyPair:
    try:
        return nkeys.from_seed(seed.encode())
    except nkeys.NkeysError as error:
        raise NotAKey("it is not a seed of a NATS key") from error
