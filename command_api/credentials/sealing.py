"""Values encrypted under a key that is derived from the control plane's, one for each purpose.

A value is bound to its place, so that a row copied elsewhere opens nothing.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from command_api.settings import ControlSecrets
from schemas.errors import KinoraError

NONCE_BYTES = 12


class SecretUnreadable(KinoraError):
    """A stored secret cannot be decrypted with this installation's keys."""

    code = "secret_unreadable"


class Sealer:
    """Seals and opens. Its key is derived, so that no other use of the same secret shares it."""

    def __init__(self, personal_key: bytes, purpose: bytes) -> None:
        self._cipher = AESGCM(HKDF(SHA256(), 32, salt=None, info=purpose).derive(personal_key))

    @classmethod
    def from_secrets(cls, secrets: ControlSecrets, purpose: bytes) -> "Sealer":
        return cls(bytes.fromhex(secrets.personal_key_hex.get_secret_value()), purpose)

    def seal(self, content: bytes, *place: str) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, content, _bound_to(place))

    def open(self, sealed: bytes, *place: str) -> bytes:
        """The content in the clear: keep it no longer than it is needed.

        Raises:
            SecretUnreadable: when it was sealed with other keys or for another place.
        """
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound_to(place))
        except (InvalidTag, ValueError):
            raise SecretUnreadable(
                f"the secret of {place[-1]} cannot be decrypted with this installation's keys; store it again"
            ) from None


def _bound_to(place: tuple[str, ...]) -> bytes:
    return "\0".join(place).encode()
