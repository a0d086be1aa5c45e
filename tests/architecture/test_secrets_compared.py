"""Secrets are compared in constant time: `==` takes longer the more of a guess is right."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("command_api", "kinora", "trainer_agent", "projections", "schemas")
SECRET = (
    "password",
    "secret",
    "hmac",
    "signature",
    "token_hash",
    "refresh_token",
    "access_token",
    "private_key",
    "digest",
)
COMPARED = (ast.Eq, ast.NotEq)


def name_of(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=function):
            return name_of(function)
    return ""


def comparisons(source: str) -> list[int]:
    """Lines that compare something named like a secret with `==` or `!=`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(isinstance(operator, COMPARED) for operator in node.ops)
        and any(word in name_of(side).lower() for side in (node.left, *node.comparators) for word in SECRET)
        # Digests of content, whose value everybody may know.
        and not any(name_of(side) == "hexdigest" for side in (node.left, *node.comparators))
    ]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("if row.token_hash == given: pass", [1]),
        ("if hmac.digest(key, body, 'sha256') != tag: pass", [1]),
        ("if file.sha256 == expected: pass", []),
        ("if hmac.compare_digest(a, b): pass", []),
    ],
)
def test_the_rule_finds_what_it_should(source: str, found: list[int]) -> None:
    assert comparisons(source) == found


def test_no_secret_is_compared_with_equals() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for line in comparisons(path.read_text())
    }
    assert found == set()
