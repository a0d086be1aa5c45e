"""What a training does without when memory does not suffice: pure decisions, one rung after the other.

Every rung but the last leaves the gradient as it was: a micro-batch is split, layers are computed twice
instead of kept, logits are made for fewer tokens at once. Fewer frames is another training, so it needs
consent. A rung that was taken stays: what did not fit once would not fit again. Where several processes share
a training, a rung of one is a rung of all from the next step on: rows are dealt anew then, and what was too
much for one may be another's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Site = Literal["forward", "backward", "optimizer", "evaluation"]
Action = Literal[
    "split_micro_batch",
    "gradient_checkpointing",
    "smaller_loss_chunks",
    "fewer_frames",
    "smaller_optimizer_slices",
    "smaller_evaluation_batch",
]
SMALLEST_LOSS_CHUNK = 16
"""Supervised tokens; below that the logits are not what fills the memory."""
OPTIMIZER_SLICE = 32 << 20
CPU_OPTIMIZER_SLICE = 4 << 20
"""Where launching kernels costs nothing, but fresh memory for larger copies does."""
SMALLEST_OPTIMIZER_SLICE = 64 << 10


@dataclass(frozen=True)
class Economy:
    """The rungs taken so far; a checkpoint holds them, because a resumed training goes on from there."""

    tokens_per_pass: int | None = None
    """Rows with more are split between samples."""
    gradient_checkpointing: bool = False
    loss_chunk: int = 1024
    """Supervised tokens whose logits are made at once."""
    frames_divisor: int = 1
    """How many times fewer frames than the job asked for."""
    evaluated_at_once: int | None = None
    """Held-out examples."""
    optimizer_slice: int = OPTIMIZER_SLICE
    """Bytes of parameters that are updated at once."""

    @property
    def thrift(self) -> list[float]:
        """As numbers, of which a larger one is thriftier."""
        return [
            -math.inf if self.tokens_per_pass is None else -self.tokens_per_pass,
            self.gradient_checkpointing,
            -self.loss_chunk,
            self.frames_divisor,
            -math.inf if self.evaluated_at_once is None else -self.evaluated_at_once,
            -self.optimizer_slice,
        ]

    @classmethod
    def of_thrift(cls, thrift: Sequence[float]) -> "Economy":
        """The largest number of each kind, from several economies, is the one that suffices for all."""
        tokens, checkpointing, chunk, divisor, at_once, optimizer_slice = thrift
        return cls(
            tokens_per_pass=None if tokens == -math.inf else int(-tokens),
            gradient_checkpointing=bool(checkpointing),
            loss_chunk=int(-chunk),
            frames_divisor=int(divisor),
            evaluated_at_once=None if at_once == -math.inf else int(-at_once),
            optimizer_slice=int(-optimizer_slice),
        )

    @property
    def described(self) -> str:
        """For people."""
        found = [
            f"gradient checkpointing is {'on' if self.gradient_checkpointing else 'off'}",
            f"logits are made for {self.loss_chunk} tokens at once",
        ]
        if self.tokens_per_pass is not None:
            found.append(f"forward passes were split to {self.tokens_per_pass} tokens")
        if self.frames_divisor > 1:
            found.append(f"clips give {self.frames_divisor} times fewer frames")
        if self.evaluated_at_once is not None:
            found.append(f"{self.evaluated_at_once} held-out rows are evaluated at once")
        return ", ".join(found)


UNSPARING = Economy()


@dataclass(frozen=True)
class Failed:
    """What was too much."""

    site: Site
    samples: int = 0
    tokens: int = 0
    supervised: int = 0
    frames: int = 0
    """Of the clip that has most."""


@dataclass(frozen=True)
class Rung:
    """One step down in memory."""

    action: Action
    before: int
    after: int
    economy: Economy


def next_rung(economy: Economy, failed: Failed, *, fewer_frames: bool) -> Rung | None:
    """The first thing that helps and was not done yet; None when nothing is left.

    Args:
        fewer_frames: whether the job's owner agreed to that.
    """
    match failed.site:
        case "optimizer":
            return _smaller_slices(economy)
        case "evaluation":
            return _smaller_evaluation(economy, failed) or _smaller_chunks(economy, failed)
        case _:
            return (
                _split(economy, failed)
                or _checkpointing(economy)
                or _smaller_chunks(economy, failed)
                or (_fewer_frames(economy, failed) if fewer_frames else None)
            )


def parts(lengths: Sequence[int], limit: int | None) -> list[tuple[int, int]]:
    """Neighbouring samples of these lengths in groups of at most `limit` tokens, as [first, end).

    A sample that is longer stands alone.
    """
    groups: list[tuple[int, int]] = []
    first, taken = 0, 0
    for place, length in enumerate(lengths):
        if limit is not None and place > first and taken + length > limit:
            groups.append((first, place))
            first, taken = place, 0
        taken += length
    return [*groups, (first, len(lengths))]


def _split(economy: Economy, failed: Failed) -> Rung | None:
    if failed.samples < 2:
        return None
    # Half of what failed: so it falls into two parts at least, and nothing shorter is split without need.
    after = failed.tokens // 2
    return Rung("split_micro_batch", failed.tokens, after, replace(economy, tokens_per_pass=after))


def _checkpointing(economy: Economy) -> Rung | None:
    if economy.gradient_checkpointing:
        return None
    return Rung("gradient_checkpointing", 0, 1, replace(economy, gradient_checkpointing=True))


def _smaller_chunks(economy: Economy, failed: Failed) -> Rung | None:
    before = min(economy.loss_chunk, failed.supervised)
    if before <= SMALLEST_LOSS_CHUNK:
        return None
    after = max(SMALLEST_LOSS_CHUNK, before // 2)
    return Rung("smaller_loss_chunks", before, after, replace(economy, loss_chunk=after))


def _fewer_frames(economy: Economy, failed: Failed) -> Rung | None:
    if failed.frames < 2:
        return None
    return Rung(
        "fewer_frames",
        failed.frames,
        max(1, failed.frames // 2),
        replace(economy, frames_divisor=economy.frames_divisor * 2),
    )


def _smaller_evaluation(economy: Economy, failed: Failed) -> Rung | None:
    if failed.samples < 2:
        return None
    after = failed.samples // 2
    return Rung("smaller_evaluation_batch", failed.samples, after, replace(economy, evaluated_at_once=after))


def _smaller_slices(economy: Economy) -> Rung | None:
    if economy.optimizer_slice <= SMALLEST_OPTIMIZER_SLICE:
        return None
    after = max(SMALLEST_OPTIMIZER_SLICE, economy.optimizer_slice // 8)
    return Rung(
        "smaller_optimizer_slices", economy.optimizer_slice, after, replace(economy, optimizer_slice=after)
    )
