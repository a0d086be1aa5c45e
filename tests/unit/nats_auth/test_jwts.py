"""Keys and JWTs as NATS defines them."""

import base64
import json
from typing import Any

import nkeys
import pytest
from pydantic import SecretStr

from command_api.nats_auth.accounts import AGENT_SERVICES, SUBSCRIBER_SERVICES
from command_api.nats_auth.jwts import account_jwt, operator_jwt, user_jwt
from command_api.nats_auth.keys import Kind, NotAKey, is_signed_by, new_seed, public_key, raw_public_key, sign
from command_api.nats_auth.rights import EVERYTHING, Rights, agent_rights, subscriber_rights, telemetry_rights
from command_api.nats_auth.users import Issuer, credentials_text
from schemas.ids import Prefix, new_id
from schemas.settings import NatsAccount

OPERATOR, ACCOUNT, SIGNING, USER = (
    new_seed("operator"),
    new_seed("account"),
    new_seed("account"),
    new_seed("user"),
)
NOW = 1_800_000_000


def decoded(token: str, signer: str) -> dict[str, Any]:
    """The claims, once the signature is found to be `signer`'s."""
    unsigned, _, signature = token.rpartition(".")
    pair = nkeys.from_seed(signer.encode())
    assert pair.verify(unsigned.encode(), base64.urlsafe_b64decode(signature + "=="))
    header, claims = (json.loads(base64.urlsafe_b64decode(part + "===")) for part in unsigned.split("."))
    assert header == {"alg": "ed25519-nkey", "typ": "JWT"}
    assert claims["iss"] == public_key(signer)
    found: dict[str, Any] = claims
    return found


@pytest.mark.parametrize(("kind", "letter"), [("operator", "O"), ("account", "A"), ("user", "U")])
def test_a_key_says_what_it_is_for(kind: Kind, letter: str) -> None:
    seed = new_seed(kind)
    public = public_key(seed)
    assert (seed[:2], public[0], len(public)) == (f"S{letter}", letter, 56)
    assert len(raw_public_key(public, kind)) == 32


@pytest.mark.parametrize(
    "text",
    ["", "U", "U" + "A" * 55, public_key(ACCOUNT), public_key(USER)[:-1], "ü" * 56],
    ids=["empty", "letter", "no_checksum", "of_an_account", "cut_off", "not_ascii"],
)
def test_what_is_no_user_s_key_is_refused(text: str) -> None:
    with pytest.raises(NotAKey):
        raw_public_key(text, "user")


def test_only_the_owner_of_a_key_signs_for_it() -> None:
    signature = sign(USER, b"it is me")
    assert is_signed_by(public_key(USER), b"it is me", signature)
    assert not is_signed_by(public_key(USER), b"it is you", signature)
    assert not is_signed_by(public_key(new_seed("user")), b"it is me", signature)
    assert not is_signed_by("nobody", b"it is me", signature)
    assert not is_signed_by(public_key(USER), b"it is me", b"short")


def test_operator_and_account() -> None:
    system, account = public_key(ACCOUNT), public_key(SIGNING)
    assert decoded(operator_jwt(OPERATOR, system_account=system, issued_at=NOW), OPERATOR)["nats"] == {
        "system_account": system,
        "type": "operator",
        "version": 2,
    }
    plain = decoded(account_jwt(OPERATOR, account, name="a", issued_at=NOW), OPERATOR)
    assert (plain["sub"], plain["iat"], "exp" in plain) == (account, NOW, False)
    assert "disk_storage" not in plain["nats"]["limits"]
    claims = decoded(
        account_jwt(
            OPERATOR,
            account,
            name="a",
            issued_at=NOW,
            jetstream=True,
            signing_key=system,
            body={"revocations": {public_key(USER): NOW}},
        ),
        OPERATOR,
    )["nats"]
    assert claims["limits"]["disk_storage"] == -1
    assert claims["revocations"] == {public_key(USER): NOW}
    assert claims["signing_keys"] == [system]
    own = account_jwt(OPERATOR, account, name="a", issued_at=NOW, signing_key=account)
    assert "signing_keys" not in decoded(own, OPERATOR)["nats"]


def test_a_user_is_limited_to_its_rights_and_its_time() -> None:
    account, user = public_key(ACCOUNT), public_key(USER)
    token = user_jwt(
        ACCOUNT, account, user, name="u", rights=Rights((), ("a.>",)), issued_at=NOW, expires_at=NOW + 60
    )
    claims = decoded(token, ACCOUNT)
    assert (claims["sub"], claims["exp"]) == (user, NOW + 60)
    # An empty list of what is allowed would allow everything.
    assert (claims["nats"]["pub"], claims["nats"]["sub"]) == ({"deny": [">"]}, {"allow": ["a.>"]})
    assert "issuer_account" not in claims["nats"]
    by_signing_key = user_jwt(
        SIGNING, account, user, name="u", rights=EVERYTHING, issued_at=NOW, expires_at=NOW + 60
    )
    claims = decoded(by_signing_key, SIGNING)["nats"]
    assert (claims["issuer_account"], claims["pub"], claims["sub"]) == (account, {}, {})


def test_no_right_holds_a_wildcard_that_reaches_another_organization() -> None:
    organization, agent, user = new_id(Prefix.ORGANIZATION), new_id(Prefix.AGENT), public_key(USER)
    rights = agent_rights(organization, agent, "gpus")
    assert rights.publish is not None
    assert rights.subscribe is not None
    for subject in rights.publish:
        assert organization in subject, subject
    for subject in rights.subscribe:
        assert agent in subject, subject
    assert telemetry_rights(user).publish == ()
    reader = subscriber_rights("mine", user)
    assert reader.publish is not None
    assert all("mine" in subject for subject in reader.publish)
    assert reader.subscribe == (f"_INBOX.{user}.>", "kinora.head")


def test_an_agent_s_jwt_fits_a_protocol_line() -> None:
    """The embedded server takes lines of 16 KiB; docs/operations.md asks the same of others."""
    rights = agent_rights(new_id(Prefix.ORGANIZATION), new_id(Prefix.AGENT), "p" * 63)
    account = NatsAccount(account=public_key(ACCOUNT), signing_seed=SecretStr(ACCOUNT))
    signed = Issuer(account, 60, lambda: NOW).user(public_key(USER), new_id(Prefix.AGENT), rights)
    assert len(signed.jwt) < 8 * 1024
    assert signed.expires_at.timestamp() == NOW + 60
    assert signed.jwt in credentials_text(signed.jwt, USER)


def test_agents_and_subscribers_reach_nothing_but_what_their_rights_name() -> None:
    """A right that the account has no way to is of no use; a way that no right names is one too many."""
    organization, agent = new_id(Prefix.ORGANIZATION), new_id(Prefix.AGENT)
    for rights, services in (
        (agent_rights(organization, agent, "gpus"), AGENT_SERVICES),
        (subscriber_rights(organization, new_id(Prefix.SUBSCRIPTION)), SUBSCRIBER_SERVICES),
    ):
        assert rights.publish is not None
        ways = {service.called or service.subject for service in services}
        used = {way for way in ways if any(fits(way, subject) for subject in rights.publish)}
        assert used == ways
        assert all(any(fits(way, subject) for way in ways) for subject in rights.publish)


def fits(pattern: str, subject: str) -> bool:
    """Whether everything that `subject` stands for is within `pattern`."""
    wide, narrow = pattern.split("."), subject.split(".")
    for number, token in enumerate(wide):
        if token == ">":
            return len(narrow) > number
        if number >= len(narrow) or (token != "*" and token != narrow[number]):
            return False
    return len(wide) == len(narrow)
