"""How backups tell how far they are."""

from typing import Literal, Protocol

Phase = Literal["events", "credentials", "listings", "objects", "checking events", "checking objects"]
"""Phases of objects count bytes; the others count rows."""


class Report(Protocol):
    """Called with what is done so far and what there is in all; `total` may grow."""

    def __call__(self, phase: Phase, done: int, total: int) -> None: ...


def silent(phase: Phase, done: int, total: int) -> None:
    """Tells nobody."""
