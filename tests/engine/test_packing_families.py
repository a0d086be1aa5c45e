"""In every family a packed row gives each sample the logits that it has alone in stock transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_engine.data.collate import Batch, Sample, packed
from qlora_engine.data.frames import ClipFrames
from qlora_engine.models.families.base import Moments, exchange
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.tiny_random import RECIPES, make_random_model
from qlora_engine.training.forward import Runner

CPU = torch.device("cpu")
EXACT = 1e-5


def noise(loaded: Loaded, frames: int) -> ClipFrames | None:
    if loaded.vision is None:
        return None
    layout = loaded.vision.layout(64, 48, frames)
    pixels = torch.randint(0, 256, (frames, 3, layout.height, layout.width), dtype=torch.uint8)
    moments = Moments(tuple(float(number) for number in range(frames)), float(frames))
    return ClipFrames(pixels, moments, layout)


def sample(loaded: Loaded, frames: int, words: int) -> Sample:
    clip = noise(loaded, frames)
    shown = None if clip is None else clip.shown
    encoded = loaded.prompts.encode(exchange("What is shown?", "a red square " * words), shown)
    ids = torch.tensor(encoded.ids)
    labels = ids.masked_fill(~torch.tensor(encoded.supervised), -100)
    return Sample(ids=ids, labels=labels, positions=loaded.prompts.positions(encoded.ids, shown), clip=clip)


@pytest.mark.parametrize("architecture", RECIPES)
def test_a_packed_row_is_exact(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = load_model(str(make_random_model(tmp_path, architecture)), CPU)
    samples = [sample(loaded, frames, words) for frames, words in ((4, 1), (2, 30), (2, 9), (6, 3))]
    runner = Runner(loaded.model, loaded)
    with torch.no_grad():
        together = runner.logits(packed(samples))
        loaded.model.set_attn_implementation("sdpa")
        alone = [stock_logits(runner, packed([each])) for each in samples]
    assert float((together[0] - torch.cat(alone)).abs().max()) <= EXACT
    # The check sees contamination: without the samples' lengths the difference is large.
    whole = replace(packed(samples), lengths=(sum(map(len, samples)),))
    with torch.no_grad():
        contaminated = stock_logits(runner, whole)
    assert float((contaminated - torch.cat(alone)).abs().max()) > 100 * EXACT


def stock_logits(runner: Runner, batch: Batch) -> torch.Tensor:
    """Logits [tokens, vocabulary] of one sample as transformers alone computes them, with a mask of ones."""
    vision: dict[str, Any] = runner._vision(batch.ids, batch.clips)
    found: torch.Tensor = runner.model(
        input_ids=batch.ids,
        attention_mask=torch.ones_like(batch.ids),
        position_ids=batch.position_ids,
        use_cache=False,
        **vision,
    ).logits
    return found[0]
