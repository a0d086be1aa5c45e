"""Passwords that anybody would try first are refused, and not repeated while doing so."""

import pytest
from pydantic import ValidationError

from schemas.api import SignupBody

ADA = {"username": "adalovelace", "email": "ada.l@example.org"}


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("AdaLovelace", "must not be the username"),
        (" ada.l@EXAMPLE.org ", "must not be the email"),
        ("aaaaaaaaaaaa", "4 different characters"),
        ("abcabcabcabc", "4 different characters"),
    ],
)
def test_an_obvious_password_is_refused(password: str, reason: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SignupBody(**ADA, password=password)
    (fault,) = refused.value.errors()
    assert fault["loc"] == ("password",)
    assert reason in fault["msg"]
    assert password.strip().casefold() not in fault["msg"].casefold()


def test_other_passwords_are_taken() -> None:
    assert SignupBody(**ADA, password="abcdabcdabcd")
    assert SignupBody(**ADA, password="not-adalovelace")
