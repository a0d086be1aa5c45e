"""What goes into one optimizer step, and what comes out of it."""

from dataclasses import dataclass, field

from qlora_engine.data.batches import Cursor, Step
from qlora_engine.data.collate import Batch
from qlora_engine.data.dealing import Part
from schemas.events.job import ProgressPoint


@dataclass(frozen=True)
class Prepared:
    """What one optimizer step takes, decoded and encoded."""

    step: Step
    parts: tuple[Part, ...]
    """What of it this process computes."""
    rows: tuple[Batch, ...]
    """As `parts`."""
    frames_divisor: int
    """See `Economy`."""

    @property
    def samples(self) -> list[int]:
        """Of the whole step, by place."""
        return [sample for row in self.step.rows for sample in row]

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.rows)

    @property
    def supervised(self) -> int:
        """Tokens that the loss is computed on."""
        return sum(row.supervised for row in self.rows)


@dataclass(frozen=True)
class Taken:
    """A step that was taken, as it is told."""

    point: ProgressPoint
    step: Step

    @property
    def after(self) -> Cursor:
        return self.step.after


@dataclass
class Seen:
    """Of one step, by one process."""

    loss: float = 0.0
    """Its part of the sum over supervised tokens, divided by those of all processes."""
    by_place: dict[int, float] = field(default_factory=dict)
    """Loss per supervised token of each sample that it had."""
