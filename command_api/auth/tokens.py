"""Access tokens: JWTs signed with Ed25519, short-lived, and carrying the organization they speak for."""

import hashlib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from command_api.auth.errors import TokenExpired, TokenInvalid, TokenMissing
from command_api.settings import ApiSettings
from schemas.events.identity import Role
from schemas.ids import uuid7

ISSUER = "kinora"
AUDIENCE = "kinora-api"
ALGORITHM = "EdDSA"
SKEW_SECONDS = 30
"""How far the clock of the instance that issued a token may be ahead. None is granted at its end."""

READ = ("jobs:read", "datasets:read", "models:read", "agents:read", "events:read", "events:subscribe")
WRITE = (*READ, "jobs:write", "datasets:write", "models:write")
ADMINISTER = (*WRITE, "models:deploy", "inference:run", "agents:manage", "org:admin")

ERASE = "account:erase"
"""Every person's own; never part of what a person lends to a program."""

SCOPES: dict[Role, tuple[str, ...]] = {
    "viewer": (*READ, ERASE),
    "member": (*WRITE, ERASE),
    "admin": (*ADMINISTER, ERASE),
    "owner": (*ADMINISTER, ERASE),
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
        former_public_keys_pem: Iterable[str] = (),
        erased: Container[str] = frozenset(),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        key = load_pem_private_key(private_key_pem.encode(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise TypeError(f"token_private_key_pem holds a {type(key).__name__}; it must be an Ed25519 key")
        self.seconds = seconds
        self._private = key
        self._kid = _key_id(key.public_key())
        self._public = {self._kid: key.public_key()}
        for pem in former_public_keys_pem:
            former = load_pem_public_key(pem.encode())
            if not isinstance(former, Ed25519PublicKey):
                raise TypeError(f"former_token_public_keys_pem holds a {type(former).__name__}, not Ed25519")
            self._public[_key_id(former)] = former
        self._erased = erased
        self._clock = clock

    @classmethod
    def from_settings(cls, settings: ApiSettings, erased: Container[str] = frozenset()) -> Self:
        """`erased`: persons whose tokens are worth nothing, whatever they say."""
        pem = settings.secrets.token_private_key_pem.get_secret_value()
        return cls(
            pem,
            seconds=settings.access_token_seconds,
            former_public_keys_pem=settings.secrets.former_token_public_keys_pem,
            erased=erased,
        )

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
        return jwt.encode(claims, self._private, algorithm=ALGORITHM, headers={"kid": self._kid})

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
            kid = jwt.get_unverified_header(token).get("kid", "")
            claims = jwt.decode(
                token,
                # Whatever else the id says, the present key decides.
                self._public.get(kid, self._public[self._kid]),
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
            issued_at = float(claims["iat"])
        except (jwt.InvalidTokenError, TypeError, ValueError) as error:
            raise TokenInvalid("the access token is not valid here; log in again") from error
        now = self._clock().timestamp()
        if issued_at > now + SKEW_SECONDS:
            raise TokenInvalid("the access token is of the future; set the clocks of the service's machines")
        if principal.expires_at <= now:
            raise TokenExpired("the access token has expired; refresh it and repeat the request")
        if principal.user_id in self._erased:
            raise TokenInvalid("the access token's owner was erased")
        return principal


def _key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]
