"""Which samples an optimizer step takes, and which of them share a forward pass: pure functions of a cursor.

So a resumed training goes on with exactly the samples that the unbroken one would have taken, and nothing is
decoded again. Free of torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil
from typing import Protocol

from qlora_engine.data.packing import pack
from qlora_engine.data.samples import Sampler
from schemas.training import Hyperparameters


@dataclass(frozen=True)
class Cursor:
    """A place between two optimizer steps."""

    epoch: int = 0
    place: int = 0
    """Examples taken of this epoch, or rows where steps are counted in tokens."""
    examples: int = 0
    """Examples taken of all epochs."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step takes."""

    rows: tuple[tuple[int, ...], ...]
    """Samples by forward pass."""
    after: Cursor


class Steps(Protocol):
    """How samples are dealt out to optimizer steps."""

    def at(self, cursor: Cursor) -> Step: ...


@dataclass(frozen=True)
class StepsOfExamples:
    """Every step takes equally many examples; epochs follow one another without a gap."""

    sampler: Sampler
    batch_size: int
    micro_batch_size: int
    lengths: Sequence[int]
    tokens_per_micro_batch: int | None = None

    def at(self, cursor: Cursor) -> Step:
        samples = self.sampler.take(cursor.examples, self.batch_size)
        taken = cursor.examples + self.batch_size
        after = Cursor(*divmod(taken, self.sampler.examples), taken)
        if self.tokens_per_micro_batch is None:
            size = self.micro_batch_size
            rows = tuple(tuple(samples[start : start + size]) for start in range(0, len(samples), size))
            return Step(rows, after)
        # A batch larger than an epoch holds a sample twice, so its places are packed and not its samples.
        lengths = [self.lengths[sample] for sample in samples]
        packed = pack(range(len(samples)), lengths, self.tokens_per_micro_batch)
        return Step(tuple(tuple(samples[place] for place in row) for row in packed), after)


@dataclass(frozen=True)
class StepsOfTokens:
    """Every step takes equally many full rows, packed over the whole epoch."""

    sampler: Sampler
    rows_per_step: int
    lengths: tuple[int, ...] = field(repr=False)
    tokens_per_micro_batch: int

    def at(self, cursor: Cursor) -> Step:
        epoch, place = cursor.epoch, cursor.place
        rows: list[tuple[int, ...]] = []
        while len(rows) < self.rows_per_step:
            planned = self.rows(epoch)
            taken = planned[place : place + self.rows_per_step - len(rows)]
            rows.extend(taken)
            epoch, place = (
                (epoch, place + len(taken)) if place + len(taken) < len(planned) else (epoch + 1, 0)
            )
        examples = cursor.examples + sum(map(len, rows))
        return Step(tuple(rows), Cursor(epoch, place, examples))

    def rows(self, epoch: int) -> list[tuple[int, ...]]:
        """All rows of an epoch: every sample is in exactly one."""
        return _rows(self.sampler, epoch, self.lengths, self.tokens_per_micro_batch)


def planned(hyperparameters: Hyperparameters, lengths: Sequence[int]) -> Steps:
    """The steps of a training on examples of these lengths, in tokens."""
    sampler = Sampler(len(lengths), hyperparameters.seed)
    budget = hyperparameters.tokens_per_micro_batch
    if hyperparameters.tokens_per_step is not None and budget is not None:
        rows = ceil(hyperparameters.tokens_per_step / budget)
        return StepsOfTokens(sampler, rows, tuple(lengths), budget)
    size = hyperparameters.batch_size
    return StepsOfExamples(sampler, size, hyperparameters.micro_batch_size or size, lengths, budget)


@lru_cache(maxsize=2)
def _rows(sampler: Sampler, epoch: int, lengths: tuple[int, ...], budget: int) -> list[tuple[int, ...]]:
    return pack(sampler.order(epoch), lengths, budget)
