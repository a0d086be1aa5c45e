"""Which passwords somebody who knows nothing of their owner would try first, and which invite to."""

import re
import unicodedata
from collections.abc import Mapping
from itertools import pairwise

FEWEST_DIFFERENT = 4
FEWEST_BESIDE_NAME = 6
_RUNS = ("abcdefghijklmnopqrstuvwxyz", "01234567890", "qwertyuiop", "qwertzuiop", "asdfghjkl", "zxcvbnm")
_LIKELY = frozenset({"admin", "administrator", "changeme", "default", "dragon", "football", "hello"}) | {
    *("iloveyou", "kinora", "letmein", "login", "master", "monkey", "password", "princess", "qwerty"),
    *("root", "secret", "sunshine", "superman", "test", "user", "welcome", "whatever", "trustno"),
}
"""What leaked passwords are made of, again and again, before digits and signs are put to it."""
_DISGUISES = str.maketrans("@4310$57", "aaeiosst")


def weakness(password: str, names: Mapping[str, str]) -> str | None:
    """What is wrong with a password, without repeating it; `names` are its owner's, by field."""
    folded = unicodedata.normalize("NFKC", password).casefold().strip()
    if len(set(folded)) < FEWEST_DIFFERENT:
        return f"must have at least {FEWEST_DIFFERENT} different characters"
    for field, name in names.items():
        for part in {name.casefold(), name.casefold().partition("@")[0]}:
            if part and part in folded and len(folded.replace(part, "")) < FEWEST_BESIDE_NAME:
                return f"must not be the {field} or little more than it; choose another"
    if folded in (folded + folded)[1:-1]:
        return "must not be one piece repeated; choose another"
    if _share_of_steps(folded) >= 0.7:
        return "must not follow the keyboard or the alphabet; choose another"
    if _core(folded) in _LIKELY or _core(folded).translate(_DISGUISES) in _LIKELY:
        return "must not be a common word with digits or signs; put several words together"
    return None


def _share_of_steps(text: str) -> float:
    """How much of a text goes to the next key or letter, on or back."""
    pairs = [first + second for first, second in pairwise(text)]
    steps = sum(any(pair in run or pair[::-1] in run for run in _RUNS) for pair in pairs)
    return steps / len(pairs)


def _core(text: str) -> str:
    """The word in a text without the digits and signs around it."""
    return re.sub(r"^[\W\d_]+|[\W\d_]+$", "", text)
