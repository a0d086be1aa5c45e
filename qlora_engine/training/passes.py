"""The forward passes of one row: itself, or parts of it whose gradients add up to exactly its own.

Dropout draws for the whole row in every part, and each part takes its share: so a row that had to be split
has the same noise, and random numbers go on from the same place, as if it had not been.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional

from qlora_engine.data.collate import Batch
from qlora_engine.models.families.base import ClipLayout
from qlora_engine.training.economy import parts
from qlora_engine.training.random_states import RandomStates

WRAPPED = "base_model.model."
"""What PEFT puts before the names of a model's layers."""
DROPOUT = ".lora_dropout."


@dataclass(frozen=True)
class Pass:
    """Samples [first, end) of a row."""

    first: int
    end: int
    batch: Batch


def passes(
    model: Any, sees: Callable[[str], bool], device: torch.device, row: Batch, limit: int | None
) -> Generator[Pass]:
    """Parts of at most `limit` tokens; compute each forward and backward before asking for the next.

    Close it (`contextlib.closing`), whatever happens: until then the model's dropout is bound to it.

    Args:
        sees: whether the layer of this name works on clips and not on tokens.
    """
    cuts = parts(row.lengths, limit)
    if len(cuts) == 1:
        yield Pass(0, len(row.lengths), row)
        return
    # A part without clips does not run the vision part, so another one has to draw its numbers first.
    cuts.sort(key=lambda cut: not any(row.with_clip[cut[0] : cut[1]]))
    with _Noise(row, device).bound(model, sees) as noise:
        for first, end in cuts:
            part = row.part(first, end)
            noise.begin(first, part)
            yield Pass(first, end, part)
            noise.passed()
        noise.leave()


@dataclass
class _Noise:
    row: Batch
    device: torch.device
    _first: int = 0
    _part: Batch | None = None
    _start: RandomStates | None = None
    _text: RandomStates | None = None
    """Where random numbers stand when the clips have been seen and the text has not been read yet."""
    _end: RandomStates | None = None

    @contextmanager
    def bound(self, model: Any, sees: Callable[[str], bool]) -> Iterator["_Noise"]:
        dropouts = [
            (module, sees(name.removeprefix(WRAPPED).partition(DROPOUT)[0]))
            for name, module in model.named_modules()
            if DROPOUT in name and isinstance(module, torch.nn.Dropout)
        ]
        try:
            for module, seeing in dropouts:
                module.forward = self._dropout(module, seeing)  # type: ignore[assignment, method-assign]
            yield self
        finally:
            for module, _ in dropouts:
                module.__dict__.pop("forward", None)

    def begin(self, first: int, part: Batch) -> None:
        self._first, self._part = first, part
        if self._start is None:
            self._start = RandomStates.now(self.device)
        elif any(part.with_clip) or not any(self.row.with_clip):
            self._start.restore()
        elif self._text is not None:
            self._text.restore()

    def passed(self) -> None:
        if self._end is None:
            self._end = RandomStates.now(self.device)

    def leave(self) -> None:
        if self._end is not None:
            self._end.restore()

    def _dropout(self, module: torch.nn.Dropout, seeing: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(given: torch.Tensor) -> torch.Tensor:
            if not module.training or module.p == 0:
                return given
            if not seeing and self._text is None:
                self._text = RandomStates.now(self.device)
            rows, width = given.numel() // given.shape[-1], given.shape[-1]
            place = self._place(rows, seeing)
            if place is None:  # a layer that works on something else: its noise is its own
                return functional.dropout(given, module.p)
            whole, offset = place
            kept = functional.dropout(given.new_ones(whole, width), module.p)[offset : offset + rows] != 0
            return given * kept.view(given.shape) * (1 / (1 - module.p))

        return forward

    def _place(self, rows: int, seeing: bool) -> tuple[int, int] | None:
        """The whole row's length and where the part begins in it, for a layer that sees `rows` of it."""
        assert self._part is not None  # noqa: S101 - begun
        if not seeing:
            found = (self.row.tokens, sum(self.row.lengths[: self._first]))
            return found if rows == self._part.tokens else None
        clips = [clip.layout for clip in self.row.clips[0]]
        before = sum(self.row.with_clip[: self._first])
        end = before + len(self._part.clips[0])
        for size in (_in_tower, _handed_on):
            if rows == size(clips[before:end]):
                return size(clips), size(clips[:before])
        return None


def _in_tower(clips: Sequence[ClipLayout]) -> int:
    return sum(clip.steps * clip.rows * clip.columns for clip in clips)


def _handed_on(clips: Sequence[ClipLayout]) -> int:
    return sum(clip.tokens for clip in clips)
