"""A merged model against the base with its adapter beside it: the largest difference of a logit.

Every family, both 4-bit types, with and without double quantisation, and every kind of adapter that may be
merged. Models are tiny and random; adapters have other ranks in some layers, and a B drawn at random instead
of learnt: large updates in every targeted layer. What is compared with is the model as it was trained, still
in memory, and what is compared is the checkpoint that was written, loaded by transformers alone.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.installation import console, scratch
from benchmarks.report import Result
from qlora_engine.adapters.injection import inject
from qlora_engine.fingerprints import folder_sha256
from qlora_engine.models.attention import attend_by_sample
from qlora_engine.models.loading import load_model
from qlora_engine.models.quantization import Quantization
from qlora_engine.models.tiny_random import RECIPES, make_random_model
from qlora_engine.training.export import Exporter
from qlora_engine.training.forward import Runner
from qlora_engine.training.merging import PARITY, merge, probe_batch
from schemas.training import Hyperparameters

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"rslora": True},
    "DoRA": {"lora_variant": "dora"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "OLoRA": {"init_lora_weights": "olora"},
    "DoRA on OLoRA, rsLoRA": {"lora_variant": "dora", "init_lora_weights": "olora", "rslora": True},
    "text alone": {"target_modalities": ("text",)},
}
"""What may be merged; a temporal part may not."""
QUANTIZATIONS = tuple(product(("nf4", "fp4"), (True, False)))


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark; some five minutes, or a quarter of one when quick."""
    results = []
    for architecture in RECIPES:
        worst, named, count = 0.0, "", 0
        for chosen, name in _choices(quick=quick):
            with scratch() as folder:
                difference = _difference(architecture, Hyperparameters(**chosen), folder)
            count += 1
            if difference >= worst:
                worst, named = difference, name
        console.print(f"export: {architecture}: {worst:.1e} of {count} ({named})")
        results.append(Result(f"{architecture}, {count} kinds of adapter", worst, "", PARITY))
    return results


def _choices(*, quick: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """All of them; when quick, each variant and each quantisation once."""
    for place, ((variant, fields), (kind, double)) in enumerate(product(VARIANTS.items(), QUANTIZATIONS)):
        if quick and place // len(QUANTIZATIONS) % len(QUANTIZATIONS) != place % len(QUANTIZATIONS):
            continue
        chosen = {"quantization": kind, "double_quantization": double, "compute_dtype": "float32", **fields}
        yield chosen, f"{variant}, {kind}{', double' if double else ''}"


def _difference(architecture: str, chosen: Hyperparameters, folder: Path) -> float:
    base = make_random_model(folder / "base", architecture)
    loaded = load_model(str(base), torch.device("cpu"), Quantization.chosen(chosen))
    chosen = chosen.model_copy(update={"rank": 4, "rank_pattern": {"text": 12}})
    injected = inject(loaded, chosen)
    torch.manual_seed(0)
    for name, parameter in injected.trainable():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapter, output = folder / "adapter", folder / "merged"
    adapter.mkdir()
    Exporter(loaded, injected, chosen, folder_sha256(base)).write(adapter, 1)
    merge(base, adapter, output)
    merged = type(loaded.model).from_pretrained(output).eval()
    attend_by_sample(merged)
    batch = probe_batch(loaded)
    with torch.no_grad():
        one, other = (Runner(model, loaded).logits(batch) for model in (injected.model, merged))
    return float((one - other).abs().max())
