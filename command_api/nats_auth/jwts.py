"""NATS's JWTs, version 2 of their claims: an operator signs accounts, an account signs users.

The format is JSON Web Token with the algorithm ``ed25519-nkey``, which PyJWT does not know; see the
documentation of nats-server, "Decentralized JWT Authentication/Authorization". Times are Unix seconds.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from command_api.nats_auth.keys import public_key, sign
from command_api.nats_auth.rights import Rights

Claims = Mapping[str, Any]

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
_VERSION = 2
_UNLIMITED = -1


def operator_jwt(operator_seed: str, *, system_account: str, issued_at: int) -> str:
    """Names the system account; everything below is trusted because of this one."""
    body = {"system_account": system_account}
    return _signed("kinora", public_key(operator_seed), "operator", body, operator_seed, issued_at=issued_at)


def account_jwt(
    operator_seed: str,
    account: str,
    *,
    name: str,
    issued_at: int,
    jetstream: bool = False,
    signing_key: str | None = None,
    body: Claims | None = None,
) -> str:
    """An account; with `jetstream` it may fill all that the server has.

    A `signing_key` that is not the account's own may sign its users, too. `body` adds exports, imports and
    revocations.
    """
    limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _UNLIMITED) | {
        "wildcards": True
    }
    if jetstream:
        limits |= dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), _UNLIMITED)
    claims: dict[str, Any] = {"limits": limits, "default_permissions": {"pub": {}, "sub": {}}}
    if signing_key is not None and signing_key != account:
        claims["signing_keys"] = [signing_key]
    return _signed(name, account, "account", claims | dict(body or {}), operator_seed, issued_at=issued_at)


def user_jwt(
    signing_seed: str,
    account: str,
    user: str,
    *,
    name: str,
    rights: Rights,
    issued_at: int,
    expires_at: int,
) -> str:
    """A user of `account`, signed by its own key or by one of its signing keys."""
    body: dict[str, Any] = {
        "pub": _permission(rights.publish),
        "sub": _permission(rights.subscribe),
        "subs": _UNLIMITED,
        "data": _UNLIMITED,
        "payload": _UNLIMITED,
    }
    if public_key(signing_seed) != account:
        body["issuer_account"] = account
    return _signed(name, user, "user", body, signing_seed, issued_at=issued_at, expires_at=expires_at)


def _permission(subjects: tuple[str, ...] | None) -> dict[str, list[str]]:
    if subjects is None:
        return {}
    # To the server an empty list of what is allowed means everything.
    return {"allow": list(subjects)} if subjects else {"deny": [">"]}


def _signed(
    name: str,
    subject: str,
    kind: str,
    body: Claims,
    signing_seed: str,
    *,
    issued_at: int,
    expires_at: int | None = None,
) -> str:
    claims: dict[str, Any] = {
        "iat": issued_at,
        "iss": public_key(signing_seed),
        "name": name,
        "sub": subject,
        "nats": {**body, "type": kind, "version": _VERSION},
    }
    if expires_at is not None:
        claims["exp"] = expires_at
    digest = hashlib.sha256(_compact(claims)).digest()
    claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
    unsigned = f"{_base64url(_compact(_HEADER))}.{_base64url(_compact(claims))}"
    return f"{unsigned}.{_base64url(sign(signing_seed, unsigned.encode()))}"


def _compact(value: Claims) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
