"""The engine's own parts on the samples of `workload`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.engine.workload import MODEL_FOLDER, Drawn
from qlora_engine.data.collate import IGNORED, Batch, Collator, Sample, packed
from qlora_engine.data.frames import ClipFrames
from qlora_engine.models.families.base import Moments
from qlora_engine.models.loading import Loaded, load_model
from schemas.datasets import Example, one_turn


def load(folder: Path) -> Loaded:
    return load_model(str(folder / MODEL_FOLDER), torch.device("cpu"))


@dataclass(frozen=True)
class Drawer(Collator):
    """Gives the drawn samples in place of encoded rows; the row's number says which."""

    drawn: tuple[Sample, ...] = ()

    def sample(self, example: Example) -> Sample:
        return self.drawn[example.row - 1]

    def batch(self, examples: Sequence[Example]) -> Batch:
        return packed([self.sample(example) for example in examples])


def rows(count: int) -> tuple[Example, ...]:
    """Rows that stand for the drawn samples."""
    return tuple(Example(messages=one_turn("?", "!"), row=number + 1) for number in range(count))


def sample_of(drawn: Drawn, loaded: Loaded) -> Sample:
    """A drawn sample as the engine has it after decoding and encoding."""
    assert loaded.vision is not None
    ids = drawn.prompt + drawn.answer
    layout = loaded.vision.layout(64, 64, drawn.frames)
    clip = ClipFrames(drawn.pixels, Moments((0.0,) * drawn.frames, 1.0), layout)
    labels = [IGNORED] * len(drawn.prompt) + drawn.answer
    return Sample(torch.tensor(ids), torch.tensor(labels), torch.arange(len(ids))[None], clip)
