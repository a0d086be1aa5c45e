"""Whose pages, whose names, whose addresses."""

import pytest
from pydantic import ValidationError
from starlette.requests import HTTPConnection

from command_api.routes.origins import address, is_welcome
from command_api.settings import ApiSettings


@pytest.mark.parametrize(
    ("client", "counted"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("/run/kinora.sock", "/run/kinora.sock"),
        ("", "unknown"),
    ],
)
def test_an_address_is_counted_once(client: str, counted: str) -> None:
    assert address(HTTPConnection({"type": "http", "client": (client, 1), "headers": []})) == counted


def test_programs_have_no_origin_and_pages_only_theirs() -> None:
    welcome = frozenset({"https://a.example"})
    assert is_welcome(None, welcome)
    assert is_welcome("https://a.example", welcome)
    for origin in ("null", "", "http://a.example", "https://a.example:444", "https://a.example.evil.example"):
        assert not is_welcome(origin, welcome)


@pytest.mark.parametrize(
    "origin", ["*", "a.example", "https://a.example/", "https://a.example/x", "ftp://a.example"]
)
def test_an_origin_is_spelled_exactly(origin: str) -> None:
    with pytest.raises(ValidationError, match="is no origin; write https"):
        ApiSettings.model_validate({"allowed_origins": [origin]})
