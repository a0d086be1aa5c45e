"""What people may type: bounded, not blank, and free of characters that break lines, terminals or tables."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They make a text look like another one."""
_LINES = frozenset("\n\r\t")


def _clean(text: str, allowed: frozenset[str] = frozenset()) -> str:
    for character in text:
        if character in allowed:
            continue
        if character in _BIDI or unicodedata.category(character) in ("Cc", "Zl", "Zp"):
            raise ValueError(
                f"{text[:60]!a} holds the control character U+{ord(character):04X}; leave it out"
            )
    return text


def _one_line(text: str) -> str:
    return _clean(text)


def _lines(text: str) -> str:
    return _clean(text, _LINES)


def _visible(text: str) -> str:
    if all(unicodedata.category(character)[0] in "CZ" for character in text):
        raise ValueError(f"{text[:60]!a} shows nothing; give it at least one visible character")
    return text


Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_one_line),
    AfterValidator(_visible),
]
"""What a thing is called, in one line. Space around it is dropped."""

ShortName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
    AfterValidator(_one_line),
    AfterValidator(_visible),
]

OptionalName = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=200), AfterValidator(_one_line)
]
"""As `Name`; where it is empty the service makes one up."""

Line = Annotated[str, StringConstraints(max_length=200), AfterValidator(_one_line)]

LongText = Annotated[str, StringConstraints(max_length=4000), AfterValidator(_lines)]
"""May have several lines."""

Reason = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_lines)]
