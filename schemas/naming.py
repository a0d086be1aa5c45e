"""What to say of a name that there is not: the nearest one, and all that there are."""

from collections.abc import Iterable
from difflib import get_close_matches

_COMPARED_CHARACTERS = 60


def instead_of(name: str, possible: Iterable[str]) -> str:
    """How a sentence about the unknown `name` goes on: ``; did you mean rank? There are rank, alpha``."""
    names = list(possible)
    if not names:
        return "; there is none"
    meant = get_close_matches(name[:_COMPARED_CHARACTERS].lower(), names, n=1)
    likely = f"; did you mean {meant[0]}? There are" if meant else "; there are"
    return f"{likely} {', '.join(names)}"
