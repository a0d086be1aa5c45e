"""A stored credential opens only with the keys and in the place that it was sealed for."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from command_api.credentials.sealing import SecretUnreadable
from command_api.credentials.secrets import SecretKey, SecretPlace, SecretRow
from schemas.api import SecretBody
from tests.unit.domain.samples import ORGANIZATION, WORKSPACE, identifier

KEY = SecretKey(b"k" * 32)
PLACE = SecretPlace(ORGANIZATION, WORKSPACE, "mirror")
CANARY = "canary-4f8a1b"
SECRET = SecretBody(kind="token", value=CANARY)


def test_it_comes_back() -> None:
    sealed = KEY.seal(PLACE, SECRET)
    assert CANARY.encode() not in sealed
    assert KEY.open(PLACE, sealed) == SECRET
    assert KEY.seal(PLACE, SECRET) != sealed


@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(PLACE, organization_id=identifier("org", 2)),
        replace(PLACE, workspace_id=identifier("ws", 2)),
        replace(PLACE, name="other"),
    ],
)
def test_a_row_copied_elsewhere_opens_nothing(elsewhere: SecretPlace) -> None:
    with pytest.raises(SecretUnreadable):
        KEY.open(elsewhere, KEY.seal(PLACE, SECRET))


def test_other_keys_and_damage_open_nothing() -> None:
    sealed = KEY.seal(PLACE, SECRET)
    with pytest.raises(SecretUnreadable):
        SecretKey(b"l" * 32).open(PLACE, sealed)
    for damaged in (b"", sealed[:10], sealed[:-1] + bytes([sealed[-1] ^ 1])):
        with pytest.raises(SecretUnreadable) as caught:
            KEY.open(PLACE, damaged)
        assert CANARY not in caught.value.message


def test_nothing_that_is_printed_shows_the_value() -> None:
    row = SecretRow(PLACE, "token", KEY.seal(PLACE, SECRET))
    assert CANARY not in repr(SECRET) + repr(row)
    assert "sealed" not in repr(row)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "basic"}, "username"),
        ({"kind": "s3", "access_key": "AK"}, "endpoint_url"),
        ({"kind": "s3", "access_key": "AK", "endpoint_url": "ftp://x"}, "https://"),
    ],
)
def test_what_is_missing_is_named_and_the_value_is_not(fields: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SecretBody.model_validate(fields | {"value": CANARY})
    (fault,) = caught.value.errors(include_input=False)
    assert says in fault["msg"]
    assert CANARY not in fault["msg"]
