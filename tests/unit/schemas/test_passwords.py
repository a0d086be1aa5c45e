"""Passwords that are tried first are refused, with the reason; others are left to their owners."""

import pytest
from pydantic import ValidationError

from schemas.api import SignupBody
from schemas.passwords import weakness

NAMES = {"username": "ada.lovelace", "email": "ada@example.org"}
GOOD = "correct horse battery"


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("aaaaaaaaaaaa", "4 different characters"),
        ("abcabcabcabc", "4 different characters"),
        ("ada.lovelace", "the username"),
        ("Ada.Lovelace1", "the username"),
        (" ADA@example.org ", "the email"),
        ("xada@example.org!", "the email"),
        ("\uff21da.lovelace", "the username"),
        ("horse1horse1", "repeated"),
        ("abcdabcdabcd", "repeated"),
        ("1234567890", "keyboard"),
        ("0987654321", "keyboard"),
        ("qwertyuiop12", "keyboard"),
        ("abcdefghijkl", "keyboard"),
        ("asdfghjkl;'1", "keyboard"),
        ("password123", "common word"),
        ("P@ssw0rd2026!", "common word"),
        ("!!welcome!!42", "common word"),
        ("Kinora-2026", "common word"),
    ],
)
def test_what_is_tried_first(password: str, why: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SignupBody(**NAMES, password=password)
    (fault,) = refused.value.errors()
    assert fault["loc"] == ("password",)
    assert why in fault["msg"]
    assert password.strip().casefold() not in fault["msg"].casefold()


@pytest.mark.parametrize(
    "password", [GOOD, "ada likes 7 trains", "Tr0ub4dor&3xyz", "狐が走る森の中の小さな家"]
)
def test_what_is_left_to_its_owner(password: str) -> None:
    assert weakness(password, NAMES) is None


NO_ADDRESSES = (
    *("ada", "@example.org", "ada@", "a@b@c", ".ada@example.org", "ada@example..org", "ada@example.org."),
    *("a da@example.org", " ada@example.org", "ada@x.org\n", "ada@exa\u200bmple.org", "a\u00ad@example.org"),
)
NO_NAMES = ("ad", "\u0430da", "a da", " ada", "ada\n", ".ada", "ada@home", "a" * 65, "\uff21da")


@pytest.mark.parametrize("email", NO_ADDRESSES)
def test_what_is_no_address(email: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SignupBody(username="ada", email=email, password=GOOD)
    assert [fault["loc"] for fault in refused.value.errors()] == [("email",)]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_user_name(name: str) -> None:
    """Plain letters only, so that no name looks like another one."""
    with pytest.raises(ValidationError) as refused:
        SignupBody(username=name, email="ada@example.org", password=GOOD)
    assert [fault["loc"] for fault in refused.value.errors()] == [("username",)]
