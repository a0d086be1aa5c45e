"""The last net under the logs: whatever looks like a secret, or is one of ours, leaves as `[redacted]`.

Nothing should ever log a secret in the first place. But libraries write what they like into errors, and
one line is enough to give an installation away. So every finished line passes here.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import BaseModel, SecretStr

REDACTED = "[redacted]"
_SHORTEST = 8
"""Shorter values would tear holes into innocent words."""

_NAMES = (
    r"(?:password|passwd|secret(?:[_-]?key)?|token|ticket|api[_-]?key|private[_-]key"
    r"|authorization|cookie|credentials?)"
)
"""What a secret's name ends with; its beginning (`refresh_…`) does not matter."""
_WORDS = ("passw", "secret", "token", "ticket", "key", "authorization", "cookie", "credential")


class _Pattern:
    """Tried only on texts that hold one of `words`: most lines hold none, and every request makes a line.

    Anybody can have a path logged, so every expression must be done in time that grows with the text's
    length and no faster: no start inside of what another start has looked through, and nothing repeated
    that can be read in two ways.
    """

    def __init__(self, words: tuple[str, ...], expression: str, replacement: str, flags: int = 0) -> None:
        self.words = words
        self.expression = re.compile(expression, flags)
        self.replacement = replacement


# The text is JSON already, so a quote inside of a value is written \" .
_PATTERNS = (
    _Pattern(
        ("-----begin",),
        r"-----BEGIN [A-Z ]*+(?<=PRIVATE KEY)-----.*?(?:-----END [A-Z ]*-----|$)",
        REDACTED,
        re.S,
    ),
    _Pattern(("bearer", "basic"), r"\b(Bearer|Basic)\s++[A-Za-z0-9._~+/=-]{6,}+", rf"\1 {REDACTED}", re.I),
    # A JSON Web Token, and the seed of a NATS user, account or operator.
    _Pattern(
        ("eyj",), r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{6,}+\.[A-Za-z0-9_-]++\.[A-Za-z0-9_-]*+", REDACTED
    ),
    _Pattern(("su", "sa", "so", "sc"), r"S(?<!\wS)[UAOC][A-Z2-7]{56}\b", REDACTED),
    _Pattern(("knr_",), r"\bknr_[A-Za-z0-9]++_[A-Za-z0-9_-]++", REDACTED),
    # What makes a presigned URL one.
    _Pattern(
        ("signature", "x-amz-"),
        r"\b(X-Amz-(?:Signature|Credential|Security-Token)|Signature)=[^&\s\"'\\]++",
        rf"\1={REDACTED}",
        re.I,
    ),
    _Pattern(("://",), r"://([^/\s:@\"']++):[^/\s@\"']++@", rf"://\1:{REDACTED}@"),
    # `"password": "…"`, `token='…'`, and the same inside of a JSON string.
    _Pattern(
        _WORDS,
        rf"({_NAMES}\\?[\"']?\s*+[:=]\s*+)(\\?[\"'])(?>(?!\2)(?>\\{{3}}.|\\.|.))++\2",
        rf"\1\2{REDACTED}\2",
        re.I,
    ),
    _Pattern(_WORDS, rf"({_NAMES})=(?![\"'\\\[])[^\s&\"'\\,;)]++", rf"\1={REDACTED}", re.I),
)


def secret_values(settings: BaseModel) -> frozenset[str]:
    """Every `SecretStr` inside of `settings`, as it would stand in a log line."""
    return frozenset(
        text
        for secret in _secrets(settings.model_dump())
        for text in _forms(secret)
        if len(text) >= _SHORTEST
    )


def redactor(known: Iterable[str] = ()) -> Callable[[str], str]:
    """A function that takes secrets out of a text; `known` are ones that look like nothing in particular."""
    literals = sorted(known, key=len, reverse=True)
    ours = re.compile("|".join(map(re.escape, literals))) if literals else None

    def redact(text: str) -> str:
        lowered = text.lower()
        for pattern in _PATTERNS:
            if any(word in lowered for word in pattern.words):
                text = pattern.expression.sub(pattern.replacement, text)
        return text if ours is None else ours.sub(REDACTED, text)

    return redact


def _secrets(value: Any) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, dict):
        for part in value.values():
            yield from _secrets(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _secrets(part)


def _forms(secret: str) -> tuple[str, ...]:
    return secret, json.dumps(secret)[1:-1]
