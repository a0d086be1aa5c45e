"""The node's own key, which never leaves it, and the newest JWT that the control plane signed for it."""

import base64
import os
import time
from pathlib import Path

import nkeys
import structlog
from nats.aio.client import RawCredentials
from pydantic import BaseModel

from schemas.settings import NatsUser

log = structlog.get_logger()


class NodeCredentials:
    """Keeps what is renewed in a private file, so that the agent's next start has it."""

    def __init__(self, user: NatsUser, kept: Path) -> None:
        self.url = user.url
        self._seed = user.seed.get_secret_value()
        self._kept = kept
        self.public_key: str = bytes(nkeys.from_seed(self._seed.encode()).public_key).decode().rstrip("=")
        self._jwt = max([user.jwt, *self._kept_jwt()], key=_issued_at)
        claims = _claims(self._jwt)
        # From here on monotonic: the wall clock of a node may be set at any time.
        self._signed_at = time.monotonic() - max(0.0, time.time() - claims.iat)
        self._seconds = claims.exp - claims.iat

    @property
    def jwt(self) -> str:
        """The newest JWT."""
        return self._jwt

    def seconds_until(self, part: float) -> float:
        """Seconds until `part` of the JWT's life is over; negative when it is."""
        return self._signed_at + part * self._seconds - time.monotonic()

    def accept(self, jwt: str) -> None:
        """Use this JWT from the next connect on.

        Raises:
            ValueError: it was signed for somebody else.
        """
        claims = _claims(jwt)
        if claims.sub != self.public_key:
            raise ValueError("the JWT was signed for another key")
        self._jwt, self._signed_at, self._seconds = jwt, time.monotonic(), claims.exp - claims.iat
        try:
            _write_private(self._kept, jwt)
        except OSError as error:
            # The next start then renews over HTTP.
            log.warning("nats_jwt_not_kept", error=str(error))

    def sign(self, message: bytes) -> bytes:
        """Proof that this is the node that was enrolled: an Ed25519 signature."""
        return bytes(nkeys.from_seed(self._seed.encode()).sign(message))

    def text(self) -> str:
        """As in a NATS credentials file."""
        return (
            f"-----BEGIN NATS USER JWT-----\n{self._jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self._seed}\n------END USER NKEY SEED------\n"
        )

    def _kept_jwt(self) -> list[str]:
        try:
            kept = self._kept.read_text()
            return [kept] if _claims(kept).sub == self.public_key else []
        except (OSError, ValueError):
            return []


class CurrentCredentials(RawCredentials):
    """Reads the newest credentials whenever nats-py asks for them, which it does at every reconnect."""

    def __init__(self, credentials: NodeCredentials) -> None:  # not the base's: it would keep a copy
        self._credentials = credentials

    @property
    def data(self) -> str:  # type: ignore[override]
        return self._credentials.text()


class _Claims(BaseModel):
    """What matters of a NATS user JWT; times are Unix seconds."""

    sub: str
    iat: float
    exp: float


def _claims(jwt: str) -> _Claims:
    parts = jwt.split(".")
    if len(parts) != 3:
        raise ValueError("a JWT has three parts")
    return _Claims.model_validate_json(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))


def _issued_at(jwt: str) -> float:
    return _claims(jwt).iat


def _write_private(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
