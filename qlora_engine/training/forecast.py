"""What a training will take, from the tokens of its rows and the sizes of its clips; nothing is decoded.

The formula is `schemas.preflight`'s. Here the largest forward pass is found by asking the sampler for all of
them, and after the first step the rest is corrected by what that one took.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from typing import NamedTuple, Self

import torch

from qlora_engine.data.batches import Cursor, Step, Steps
from qlora_engine.data.frames import cache_limit, shown_clip
from qlora_engine.data.sampling import Sampling
from qlora_engine.device import is_jetson
from qlora_engine.errors import DoesNotFit
from qlora_engine.memory import free_memory_bytes, held_memory_bytes, return_memory_at_once
from qlora_engine.models.families.base import Vision
from qlora_engine.models.loading import Loaded
from qlora_engine.models.shape import model_shape
from qlora_engine.training.preflight import Tokens
from qlora_engine.updates import Logged
from schemas.datasets import Clip, Example, Manifest
from schemas.events.agent import AgentProfile
from schemas.footprint import Preflight
from schemas.preflight import ERROR, LIBRARIES_BYTES, Evaluated, Workload, dispatches, predict, share, timed
from schemas.preflight import Device as Where
from schemas.training import Hyperparameters

MOST_STEPS = 2_000
"""Steps that are looked at one by one; what comes later is assumed to be like them."""
WASTE = 5
"""Times the peak that glibc may hold when it is not told to return what was freed."""


class Row(NamedTuple):
    """What one example comes to."""

    tokens: int
    supervised: int
    """Tokens of it that the loss is computed on."""
    patches: int = 0
    """Of the vision tower."""
    pixels: int = 0
    """Numbers of its frames."""


def workload(plan: Steps, steps: int, rows: Sequence[Row], frame_bytes: int, largest_pass: int) -> Workload:
    """What `steps` steps on examples of these sizes come to.

    `largest_pass` is how many examples a forward pass may hold. Where there are more steps than are looked
    at, a pass may bring the largest examples together; that is then assumed.
    """
    cursor, looked = Cursor(), min(steps, MOST_STEPS)

    def all_passes() -> Iterator[Row]:
        nonlocal cursor
        for _ in range(looked):
            step = plan.at(cursor)
            cursor = step.after
            yield from passes(step, rows)

    seen = sums(all_passes(), looked)
    most = Row(seen.tokens, seen.supervised, seen.patches, seen.pixels)
    if looked < steps and largest_pass:
        together = Row(*(sum(nlargest(largest_pass, column)) for column in zip(*rows, strict=True)))
        most = Row(*map(max, most, together))
    return replace(
        seen,
        tokens=most.tokens,
        supervised=most.supervised,
        patches=most.patches,
        pixels=most.pixels,
        frame_bytes=frame_bytes,
        total_tokens=seen.total_tokens * steps // looked,
        total_patches=seen.total_patches * steps // looked,
        steps=steps,
    )


def evaluated_at_once(rows: Sequence[Row], at_once: int) -> Evaluated:
    """The most that the evaluation of these rows takes, `at_once` at a time and in this order."""
    batches = [_sum(rows[first : first + at_once]) for first in range(0, len(rows), at_once)]
    if not batches:
        return Evaluated()
    most = Row(*map(max, zip(*batches, strict=True)))
    prompt = max(row.tokens - row.supervised for row in rows)
    return Evaluated(*most, rows=min(at_once, len(rows)), prompt=prompt)


def sums(taken: Iterable[Row], steps: int) -> Workload:
    """What these forward passes come to, which are those of `steps` steps."""
    most, total = Row(0, 0), Row(0, 0)
    for each in taken:
        most = Row(*map(max, most, each))
        total = _sum((total, each))
    return Workload(
        **most._asdict(),
        frame_bytes=0,
        total_tokens=total.tokens,
        total_patches=total.patches,
        steps=steps,
    )


def passes(step: Step, rows: Sequence[Row]) -> list[Row]:
    """Each forward pass of a step."""
    return [_sum([rows[sample] for sample in samples]) for samples in step.rows]


def _sum(rows: Sequence[Row]) -> Row:
    return Row(*(sum(column) for column in zip(*rows, strict=True)))


def data_rows(
    examples: Sequence[Example],
    tokens: Mapping[str, Tokens],
    manifest: Manifest,
    vision: Vision | None,
    sampling: Sampling,
) -> list[Row]:
    """What the examples come to, by their clips' sizes."""
    seen = {} if vision is None else {clip.path: _seen(clip, vision, sampling) for clip in manifest.clips}
    return [Row(*tokens[example.where], *seen.get(example.clip or "", (0, 0))) for example in examples]


def kept_frame_bytes(manifest: Manifest, vision: Vision | None, sampling: Sampling) -> int:
    """Bytes of frames that will be kept in memory."""
    if vision is None:
        return 0
    return min(cache_limit(), sum(_seen(clip, vision, sampling)[1] for clip in manifest.clips))


def _seen(clip: Clip, vision: Vision, sampling: Sampling) -> tuple[int, int]:
    """Patches and numbers of a clip's frames."""
    layout = shown_clip(clip, vision, sampling).layout
    return layout.steps * layout.rows * layout.columns, 3 * layout.frames * layout.height * layout.width


@dataclass(frozen=True)
class Forecast:
    """What a training on this node is expected to take."""

    preflight: Preflight
    device: torch.device
    processes: int
    """That share the device's memory, or the node's."""
    of_step: Callable[[Step], Preflight]
    """What one step is expected to take, without the frames that are kept."""
    retimed: Callable[[Preflight, float], Preflight]
    remedies: tuple[tuple[str, Preflight], ...] = ()
    """Changes of hyperparameters that take less, the mildest first."""

    @classmethod
    def of(
        cls,
        base: Loaded,
        chosen: Hyperparameters,
        plan: Steps,
        steps: int,
        rows: Sequence[Row],
        *,
        frame_bytes: int,
        trainable: int | None,
        decoders: int,
        processes: int = 1,
        evaluated: Evaluated | None = None,
    ) -> Self:
        """
        Args:
            trainable: parameters of the adapter; None where every layer may come to have `rank`.
            decoders: processes that decode clips.
            evaluated: see `evaluated_at_once`.
            processes: that share every step; each has a GPU of its own, or its share of the node.
        """
        shape = model_shape(base)
        profile: AgentProfile = "cpu" if base.device.type == "cpu" else "jetson" if is_jetson() else "cuda"
        where = Where(gpu=profile != "cpu", half=base.dtype == torch.bfloat16)
        largest = 0 if chosen.tokens_per_micro_batch else chosen.micro_batch_size or chosen.batch_size
        work = workload(plan, steps, rows, frame_bytes, largest)
        work = replace(work, evaluated=evaluated or Evaluated())

        devices = processes if where.gpu else 1

        def retimed(given: Preflight, flops: float) -> Preflight:
            told = timed(given, profile, flops, devices=devices)
            return told.model_copy(update={"calibrated": True})

        def of_step(step: Step) -> Preflight:
            return predicted(sums(passes(step, rows), 1), chosen)

        def predicted(work: Workload, chosen: Hyperparameters) -> Preflight:
            given = predict(shape, work, chosen, where, trainable=trainable, decoders=decoders)
            counted = given.model_copy(update={"processes": processes})
            calls = dispatches(shape, work, chosen)
            return timed(counted, profile, devices=devices, dispatches=calls)

        largest_row = Row(*map(max, zip(*rows, strict=True)))
        alone = replace(
            work,
            tokens=largest_row.tokens,
            supervised=largest_row.supervised,
            patches=largest_row.patches,
            pixels=largest_row.pixels,
        )
        sparing = chosen.model_copy(update={"gradient_checkpointing": True})
        return cls(
            predicted(work, chosen),
            base.device,
            1 if where.gpu else processes,
            of_step,
            retimed,
            (
                ("micro_batch_size 1", predicted(alone, chosen)),
                ("gradient_checkpointing", predicted(work, sparing)),
                ("micro_batch_size 1 and gradient_checkpointing", predicted(alone, sparing)),
            ),
        )

    def check(self, limit: int | None = None) -> Logged | None:
        """Refuse what cannot fit; where memory is merely scarce, spare it.

        `limit` is what all its processes may take, in bytes (`TrainingSpec.memory_bytes`); else all that is
        free. A GPU that runs short says
        so, and the step is taken again in smaller parts; a process that runs short of main memory is killed.
        So where only smaller parts fit, a training on a GPU begins, with a warning.

        Raises:
            DoesNotFit: with the sum, and what would fit.
        """
        held = max(0, held_memory_bytes(self.device) - (0 if self.device.type == "cuda" else LIBRARIES_BYTES))
        available = free_memory_bytes(self.device) // self.processes + held
        if limit is not None:
            available = min(available, share(limit, self.processes, gpu=self._has_memory_of_its_own))
        if self.device.type == "cpu" and self.preflight.peak_bytes * WASTE > available:
            return_memory_at_once()
        if self.preflight.peak_bytes * ERROR <= available:
            return None
        fitting = [name for name, other in self.remedies if other.peak_bytes * ERROR <= available]
        remedy = (
            f"choose {fitting[0]}"
            if fitting
            else "take a smaller model or shorter samples, or a node with more memory"
        )
        told = (
            f"the training needs {self.preflight.summed()} (an estimate), but {available / 2**30:.2f} GiB are"
            f" free here, and a tenth more is kept free for its error; {remedy}"
        )
        if fitting and self.device.type == "cuda":
            return Logged(level="warning", code=DoesNotFit.code, message=told)
        raise DoesNotFit(told)

    @property
    def _has_memory_of_its_own(self) -> bool:
        return self.device.type == "cuda" and not is_jetson()
