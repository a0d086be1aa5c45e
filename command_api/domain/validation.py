"""How often a dataset or model may be given to an agent before it counts as unusable."""

from dataclasses import dataclass, replace
from typing import Literal

from schemas.datasets import Problem

Interruption = Literal["lease_expired", "released", "declined", "failed"]

MAX_FAILED = 3
"""Attempts whose engine failed."""
MAX_LOST = 5
"""Attempts whose agent vanished: an input that takes its agents down must not circulate for ever."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The attempts of a validation so far. Orderly releases and declines do not count against it."""

    attempts: int = 0
    failed: int = 0
    lost: int = 0

    @property
    def next_attempt(self) -> int:
        """Never used before: the fencing token of the next claim."""
        return self.attempts + 1

    def started(self, attempt: int) -> "Tally":
        return replace(self, attempts=attempt)

    def interrupted(self, reason: Interruption) -> "Tally":
        match reason:
            case "failed":
                return replace(self, failed=self.failed + 1)
            case "lease_expired":
                return replace(self, lost=self.lost + 1)
            case "released" | "declined":
                return self

    def given_up(self) -> bool:
        return self.failed >= MAX_FAILED or self.lost >= MAX_LOST


def validation_failed(tally: Tally, detail: str) -> Problem:
    """Why an input was rejected although nobody could judge it."""
    return Problem(
        code="validation_failed",
        where="",
        message=(
            f"validation was given up after {tally.failed} failed and {tally.lost} lost attempts"
            f" ({detail or 'the agent was lost'}); check the files and upload them again as a new one"
        ),
    )
