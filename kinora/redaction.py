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
    r"(?:[a-z]+[_-])*(?:password|passwd|secret|secret[_-]key|token|ticket|api[_-]?key|private[_-]key"
    r"|authorization|cookie|credentials?)"
)
# The text is JSON already, so a quote inside of a value is written \" .
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|$)", re.S), REDACTED),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{6,}", re.I), rf"\1 {REDACTED}"),
    # A JSON Web Token, and the seed of a NATS user, account or operator.
    (re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), REDACTED),
    (re.compile(r"\bS[UAOC][A-Z2-7]{56}\b"), REDACTED),
    (re.compile(r"\bknr_[A-Za-z0-9]+_[A-Za-z0-9_-]+"), REDACTED),
    # What makes a presigned URL one.
    (
        re.compile(r"\b(X-Amz-(?:Signature|Credential|Security-Token)|Signature)=[^&\s\"'\\]+", re.I),
        rf"\1={REDACTED}",
    ),
    (re.compile(r"://([^/\s:@\"']+):[^/\s@\"']+@"), rf"://\1:{REDACTED}@"),
    # `"password": "…"`, `token='…'`, and the same inside of a JSON string.
    (
        re.compile(
            rf"(\\?[\"']?\b{_NAMES}\\?[\"']?\s*[:=]\s*)(\\?[\"'])(?:(?!\2)(?:\\{{3}}.|\\.|.))+\2", re.I
        ),
        rf"\1\2{REDACTED}\2",
    ),
    (re.compile(rf"\b({_NAMES})=(?![\"'\\\[])[^\s&\"'\\,;)]+", re.I), rf"\1={REDACTED}"),
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
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
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
