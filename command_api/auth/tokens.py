"""Access tokens: JWTs signed with Ed25519, short-lived, and carrying the organization they speak for."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from command_api.auth.errors import TokenExpired, TokenInvalid, TokenMissing
from command_api.settings import ApiSettings
from schemas.events.identity import Role
from schemas.ids import uuid7

ISSUER = "kinora"
AUDIENCE = "kinora-api"
ALGORITHM = "EdDSA"

READ = ("jobs:read", "datasets:read", "models:read", "events:read", "events:subscribe")
WRITE = (*READ, "jobs:write", "datasets:write", "models:write")
ADMINISTER = (*WRITE, "models:deploy", "inference:run", "agents:manage", "org:admin")

SCOPES: dict[Role, tuple[str, ...]] = {
    "viewer": READ,
    "member": WRITE,
    "admin": ADMINISTER,
    "owner": ADMINISTER,
}
"""What each role may do."""

OPERATE = "installation:admin"
"""Of the installation's operator: what all organizations share."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A person in one organization and workspace, as a verified token says."""

    user_id: str
    organization_id: str
    workspace_id: str
    scopes: tuple[str, ...]
    expires_at: float = 0.0
    """Seconds since the epoch; set by `verify`."""


class AccessTokens:
    """Signs and verifies. The clock is an argument, so that expiry can be tested."""

    def __init__(
        self,
        private_key_pem: str,
        *,
        seconds: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        key = load_pem_private_key(private_key_pem.encode(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise TypeError(f"token_private_key_pem holds a {type(key).__name__}; it must be an Ed25519 key")
        self.seconds = seconds
        self._private = key
        self._public = key.public_key()
        self._clock = clock

    @classmethod
    def from_settings(cls, settings: ApiSettings) -> Self:
        pem = settings.secrets.token_private_key_pem.get_secret_value()
        return cls(pem, seconds=settings.access_token_seconds)

    def issue(self, principal: Principal) -> str:
        """A new token; its lifetime is `seconds`, whatever the principal says."""
        now = int(self._clock().timestamp())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": principal.user_id,
            "org": principal.organization_id,
            "ws": principal.workspace_id,
            "scopes": list(principal.scopes),
            "jti": uuid7().hex,
            "iat": now,
            "exp": now + self.seconds,
        }
        return jwt.encode(claims, self._private, algorithm=ALGORITHM)

    def verify(self, token: str | None) -> Principal:
        """Who a token speaks for.

        Raises:
            TokenMissing: nothing was sent.
            TokenExpired: it was valid once; refresh it.
            TokenInvalid: it was not issued here, or not for this.
        """
        if not token:
            raise TokenMissing("no access token was sent; log in and send `Authorization: Bearer <token>`")
        try:
            claims = jwt.decode(
                token,
                self._public,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                # Times are judged below by our own clock.
                options={
                    "require": ["iss", "aud", "sub", "jti", "iat", "exp", "org", "ws", "scopes"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
            principal = Principal(
                user_id=str(claims["sub"]),
                organization_id=str(claims["org"]),
                workspace_id=str(claims["ws"]),
                scopes=tuple(str(scope) for scope in claims["scopes"]),
                expires_at=float(claims["exp"]),
            )
        except (jwt.InvalidTokenError, TypeError, ValueError) as error:
            raise TokenInvalid("the access token is not valid here; log in again") from error
        if principal.expires_at <= self._clock().timestamp():
            raise TokenExpired("the access token has expired; refresh it and repeat the request")
        return principal
