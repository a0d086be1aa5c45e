"""What a training will take, from the tokens of its rows and the sizes of its clips; nothing is decoded.

The formula is `schemas.preflight`'s. Here the largest forward pass is found by asking the sampler for all of
them, and after the first step the rest is corrected by what that one took.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import NamedTuple

from qlora_engine.data.batches import Cursor, Step, Steps
from schemas.preflight import Workload

MOST_STEPS = 2_000
"""Steps that are looked at one by one; what comes later is assumed to be like them."""


class Row(NamedTuple):
    """What one example comes to."""

    tokens: int
    supervised: int
    patches: int = 0
    """Of the vision tower."""
    pixels: int = 0
    """Numbers of its frames."""


def workload(plan: Steps, steps: int, rows: Sequence[Row], frame_bytes: int, largest_pass: int) -> Workload:
    """What `steps` steps on examples of these sizes come to.

    `largest_pass` is how many examples a forward pass may hold. Where there are more steps than are looked
    at, a pass may bring the largest examples together; that is then assumed.
    """
    most, total = Row(0, 0), Row(0, 0)
    cursor = Cursor()
    looked = min(steps, MOST_STEPS)
    for _ in range(looked):
        step = plan.at(cursor)
        cursor = step.after
        for taken in passes(step, rows):
            most = Row(*map(max, most, taken))
            total = _sum((total, taken))
    if looked < steps and largest_pass:
        together = Row(*(sum(nlargest(largest_pass, column)) for column in zip(*rows, strict=True)))
        most = Row(*map(max, most, together))
    return Workload(
        tokens=most.tokens,
        supervised=most.supervised,
        patches=most.patches,
        pixels=most.pixels,
        frame_bytes=frame_bytes,
        total_tokens=total.tokens * steps // looked,
        total_patches=total.patches * steps // looked,
        steps=steps,
    )


def passes(step: Step, rows: Sequence[Row]) -> list[Row]:
    """Each forward pass of a step."""
    return [_sum([rows[sample] for sample in samples]) for samples in step.rows]


def _sum(rows: Sequence[Row]) -> Row:
    return Row(*(sum(column) for column in zip(*rows, strict=True)))
