"""What the demo compares on: mirrored clips are exact reverses, and only temporal kernels tell them apart."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from qlora_engine.adapters.injection import inject
from qlora_engine.data import shapes
from qlora_engine.data.collate import Collator
from qlora_engine.data.frames import ClipFrames
from qlora_engine.data.sampling import Sampling
from qlora_engine.data.video import sample_clip
from qlora_engine.device import one_thread
from qlora_engine.models.families.base import Moments
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.tiny import make_tiny_model
from qlora_engine.training.forward import Runner
from schemas.datasets import Example, one_turn
from schemas.training import Hyperparameters

CPU = torch.device("cpu")
FRAMES = 5


def test_a_mirrored_clip_shows_the_same_pictures_backwards(tmp_path: Path) -> None:
    shapes.make_mirrored_dataset(tmp_path, clips=10, seed=3)
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text("utf-8").splitlines()]
    assert [row["split"] for row in rows] == ["training"] * 8 + ["validation"] * 2
    for there, back in zip(rows[::2], rows[1::2], strict=True):
        figure, way = there["response"].rsplit(" ", 1)
        assert back["response"] == f"{figure} {shapes.OPPOSITE[way]}"
        for frames in (4, 5):  # what a job takes, bit for bit, after encoding and decoding
            seen, reverse = (
                sample_clip(tmp_path / row["video"], Sampling(frames=frames)).digests for row in (there, back)
            )
            assert len(set(seen)) > 1
            assert seen == reverse[::-1]


class Clips(dict[str, ClipFrames]):
    """A `ClipSource`."""

    def of(self, clip: str) -> ClipFrames:
        return self[clip]

    def ahead(self, clips: Iterable[str]) -> None:
        """All are there."""


@pytest.fixture(scope="module")
def order_blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("order-blind"), steps=2, order_blind=True)


def arrow(loaded: Loaded, model: PeftModel) -> float:
    """The largest difference of a logit of the answer between a clip and its reverse."""
    assert loaded.vision is not None
    pictures = shapes.moving(shapes.random_figure(random.Random(1)), "left", random.Random(2))
    frames = torch.from_numpy(np.stack(pictures[:: len(pictures) // FRAMES][:FRAMES])).permute(0, 3, 1, 2)
    small = frames[:, :, ::2, ::2].contiguous()
    moments = Moments(tuple(map(float, range(FRAMES))), float(FRAMES))
    layout = loaded.vision.layout(shapes.SIDE, shapes.SIDE, FRAMES)
    clips = Clips(there=ClipFrames(small, moments, layout), back=ClipFrames(small.flip(0), moments, layout))
    collator = Collator(loaded.prompts, clips, loaded.context_tokens)
    examples = [
        Example(clip=clip, messages=one_turn(shapes.PROMPT, "a red ring moves left"), row=1) for clip in clips
    ]
    with one_thread(), torch.no_grad():
        there, back = (
            Runner(model, loaded).logits(collator.batch([example]))[0, -6:] for example in examples
        )
    return float((there - back).abs().max())


@pytest.mark.parametrize("temporal", [False, True])
def test_no_ordinary_adapter_lets_it_know_the_order_of_frames(order_blind: Path, temporal: bool) -> None:
    loaded = load_model(str(order_blind), CPU)
    injected = inject(loaded, Hyperparameters(temporal=temporal))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in injected.trainable():  # every linear layer of every part
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    injected.model.eval()
    if temporal:
        assert arrow(loaded, injected.model) > 0.01
    else:
        assert arrow(loaded, injected.model) < 1e-4


def test_the_tiny_model_of_own_clips_knows_it(tiny: Path) -> None:
    loaded = load_model(str(tiny), CPU)
    injected = inject(loaded, Hyperparameters())
    assert arrow(loaded, injected.model.eval()) > 0.01
