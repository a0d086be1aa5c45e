"""Which examples are trained on, held out, and taken at which step: pure functions, so resuming is exact.

Free of torch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from schemas.datasets import Example, Manifest
from schemas.training import held_out_count

MOST_EVALUATED = 500


@dataclass(frozen=True)
class Split:
    """Training and held-out examples; no clip is in both, not even under two names, and no text twice."""

    training: tuple[Example, ...]
    held_out: tuple[Example, ...]


def split(manifest: Manifest, fraction: float, seed: int) -> Split:
    """The owner's own split if any row has one; otherwise by content.

    Of all different clips and clipless texts, `held_out_count` are held out: those whose hash with the seed
    is smallest.
    """
    examples = manifest.examples
    if any(example.split for example in examples):
        return Split(
            training=tuple(example for example in examples if example.split != "validation"),
            held_out=tuple(example for example in examples if example.split == "validation"),
        )
    groups = manifest.groups()
    ranked = sorted(set(groups), key=lambda group: _rank(seed, group))
    held = set(ranked[: held_out_count(len(ranked), fraction)])
    sides = list(zip(examples, groups, strict=True))
    return Split(
        training=tuple(example for example, group in sides if group not in held),
        held_out=tuple(example for example, group in sides if group in held),
    )


def sampled(held_out: Sequence[Example], seed: int, most: int = MOST_EVALUATED) -> tuple[Example, ...]:
    """The held-out examples that are evaluated, always the same: answering thousands takes hours."""
    places = sorted(range(len(held_out)), key=lambda place: _rank(seed, f"evaluated:{held_out[place].row}"))
    return tuple(held_out[place] for place in sorted(places[:most]))


@dataclass(frozen=True)
class Sampler:
    """An endless sequence of shuffled epochs; place `cursor` in it depends on nothing but these fields."""

    examples: int
    seed: int

    def order(self, epoch: int) -> tuple[int, ...]:
        """The examples' order in this epoch."""
        return _order(self.examples, self.seed, epoch)

    def take(self, cursor: int, count: int) -> list[int]:
        """Indices of `count` examples from place `cursor` on, across epochs if need be."""
        taken: list[int] = []
        while len(taken) < count:
            epoch, place = divmod(cursor + len(taken), self.examples)
            taken.extend(self.order(epoch)[place : place + count - len(taken)])
        return taken


@lru_cache(maxsize=2)
def _order(examples: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(sorted(range(examples), key=lambda index: _rank(seed, f"{epoch}:{index}")))


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
