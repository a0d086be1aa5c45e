"""Which examples are trained on, held out, and taken at which step: pure functions, so resuming is exact.

Free of torch.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from schemas.datasets import Example, Manifest
from schemas.training import Hyperparameters

FEWEST_CLIPS_TO_SPLIT = 5


@dataclass(frozen=True)
class Split:
    """Training and held-out examples; no clip is in both, not even under two names."""

    training: tuple[Example, ...]
    held_out: tuple[Example, ...]


def split(manifest: Manifest, fraction: float, seed: int) -> Split:
    """Hold out `fraction` of the clips: those whose hash with the seed is smallest.

    With 5 clips or more and a fraction above 0, at least one is held out; at least one always trains.
    """
    content = {clip.path: clip.sha256 for clip in manifest.clips}
    ranked = sorted(set(content.values()), key=lambda sha256: _rank(seed, sha256))
    count = math.floor(fraction * len(ranked))
    if fraction > 0 and len(ranked) >= FEWEST_CLIPS_TO_SPLIT:
        count = max(1, count)
    held = set(ranked[: min(count, len(ranked) - 1)])
    return Split(
        training=tuple(example for example in manifest.examples if content[example.clip] not in held),
        held_out=tuple(example for example in manifest.examples if content[example.clip] in held),
    )


def total_steps(hyperparameters: Hyperparameters, training_examples: int) -> int:
    """Optimizer steps of a whole training."""
    if hyperparameters.max_steps is not None:
        return hyperparameters.max_steps
    return max(1, math.ceil(training_examples * hyperparameters.epochs / hyperparameters.batch_size))


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


def batch(sampler: Sampler, examples: Sequence[Example], step: int, size: int) -> list[Example]:
    """The examples of optimizer step `step`, counted from 1."""
    return [examples[index] for index in sampler.take((step - 1) * size, size)]


@lru_cache(maxsize=2)
def _order(examples: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(sorted(range(examples), key=lambda index: _rank(seed, f"{epoch}:{index}")))


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
