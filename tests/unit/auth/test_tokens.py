"""Access tokens: only ours, only for the API, only while they last."""

from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from command_api.auth.errors import TokenExpired, TokenInvalid, TokenMissing
from command_api.auth.tokens import ISSUER, SCOPES, AccessTokens, Principal

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SOMEBODY = Principal("usr_1", "org_1", "ws_1", SCOPES["member"])


def pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


KEY = Ed25519PrivateKey.generate()


def tokens(now: datetime = NOON, key: Ed25519PrivateKey = KEY) -> AccessTokens:
    return AccessTokens(pem(key), seconds=600, clock=lambda: now)


def forged(algorithm: str = "EdDSA", **changes: object) -> str:
    claims = jwt.decode(tokens().issue(SOMEBODY), options={"verify_signature": False}) | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    key: object = {"EdDSA": KEY, "none": None, "HS256": pem(KEY)[:64]}[algorithm]
    return jwt.encode(claims, key, algorithm=algorithm)  # type: ignore[arg-type]


def test_a_token_speaks_for_whom_it_was_issued_to() -> None:
    token = tokens().issue(SOMEBODY)
    verified = tokens().verify(token)
    assert (verified.user_id, verified.organization_id, verified.workspace_id) == ("usr_1", "org_1", "ws_1")
    assert verified.scopes == SCOPES["member"]
    assert verified.expires_at == (NOON + timedelta(seconds=600)).timestamp()
    assert jwt.get_unverified_header(token)["alg"] == "EdDSA"


def test_no_two_tokens_are_alike() -> None:
    assert tokens().issue(SOMEBODY) != tokens().issue(SOMEBODY)


def test_it_lasts_ten_minutes() -> None:
    token = tokens().issue(SOMEBODY)
    tokens(NOON + timedelta(seconds=599)).verify(token)
    with pytest.raises(TokenExpired, match="refresh it"):
        tokens(NOON + timedelta(seconds=600)).verify(token)


@pytest.mark.parametrize("nothing", [None, ""])
def test_nothing_is_missing(nothing: str | None) -> None:
    with pytest.raises(TokenMissing):
        tokens().verify(nothing)


@pytest.mark.parametrize(
    "token",
    [
        "nonsense",
        "a.b.c",
        forged(aud="somebody-else"),
        forged(iss="somebody-else"),
        forged(sub=None),
        forged(org=None),
        forged(exp=None),
        forged(scopes=None),
        forged(scopes=5),
        forged(algorithm="none"),
        forged(algorithm="HS256"),
        forged(iat=int(NOON.timestamp()) + 60),
        forged(iat="soon"),
        tokens(key=Ed25519PrivateKey.generate()).issue(SOMEBODY),
        tokens().issue(SOMEBODY)[:-6] + "AAAAAA",
    ],
)
def test_what_was_not_issued_here_for_this_is_invalid(token: str) -> None:
    with pytest.raises(TokenInvalid):
        tokens().verify(token)


def test_forged_ones_are_rejected_for_what_is_wrong_with_them_alone() -> None:
    assert tokens().verify(forged(iss=ISSUER)).user_id == "usr_1"


def test_another_kind_of_key_is_refused() -> None:
    with pytest.raises(TypeError, match="must be an Ed25519 key"):
        AccessTokens(pem(ec.generate_private_key(ec.SECP256R1())), seconds=600)


def test_roles_only_ever_add_scopes() -> None:
    assert set(SCOPES["viewer"]) < set(SCOPES["member"]) < set(SCOPES["admin"]) == set(SCOPES["owner"])


def test_a_clock_may_be_a_little_ahead() -> None:
    assert tokens().verify(tokens(NOON + timedelta(seconds=20)).issue(SOMEBODY)).user_id == "usr_1"


def test_the_former_key_s_tokens_last_while_it_is_named() -> None:
    former, public = Ed25519PrivateKey.generate(), serialization.PublicFormat.SubjectPublicKeyInfo
    token = tokens(key=former).issue(SOMEBODY)
    named = former.public_key().public_bytes(serialization.Encoding.PEM, public).decode()
    during = AccessTokens(pem(KEY), seconds=600, former_public_keys_pem=[named], clock=lambda: NOON)
    assert during.verify(token).user_id == "usr_1"
    assert during.verify(during.issue(SOMEBODY)).user_id == "usr_1"
    with pytest.raises(TokenInvalid):
        tokens().verify(token)


OWN_KID = jwt.get_unverified_header(tokens().issue(SOMEBODY))["kid"]


@pytest.mark.parametrize(
    "header", [{"kid": ""}, {"kid": "0" * 16}, {"kid": OWN_KID}, {"jku": "https://evil.example/keys"}]
)
def test_a_token_cannot_choose_a_key_that_is_not_ours(header: dict[str, str]) -> None:
    claims = jwt.decode(tokens().issue(SOMEBODY), options={"verify_signature": False})
    forgery = jwt.encode(claims, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers=header)
    with pytest.raises(TokenInvalid):
        tokens().verify(forgery)
