"""In every family a packed row gives each sample the logits that it has alone in stock transformers."""

from pathlib import Path

import pytest
import torch

from benchmarks.engine.packing import EXACT, contamination, difference
from benchmarks.engine.purity import changed_gradients, make_odd
from qlora_engine.models.loading import load_model
from qlora_engine.models.tiny_random import RECIPES, make_random_model


@pytest.mark.parametrize("architecture", RECIPES)
def test_a_packed_row_is_exact(architecture: str, tmp_path: Path) -> None:
    loaded = load_model(str(make_random_model(tmp_path, architecture)), torch.device("cpu"))
    assert difference(loaded) <= EXACT
    assert contamination(loaded) > 100 * EXACT


@pytest.mark.parametrize("architecture", ["smolvlm", "qwen2_5_vl"])
def test_evaluating_and_saving_change_no_gradient_of_odd_widths(architecture: str, tmp_path: Path) -> None:
    base = make_odd(tmp_path / "base", architecture)
    changed, whole = changed_gradients(base, tmp_path / "adapter", dropout=0.1)
    assert changed == 0 < whole
