"""A merged model against the base with its adapter beside it: the largest difference of a logit, by family.

Tiny models with random weights, and adapters whose B is drawn at random instead of learnt: large updates in
every targeted layer, with mixed ranks.
"""

from pathlib import Path

import torch

from benchmarks.installation import console, scratch
from benchmarks.report import Result
from qlora_engine.adapters.injection import inject
from qlora_engine.fingerprints import folder_sha256
from qlora_engine.models.loading import load_model
from qlora_engine.models.tiny_random import RECIPES, make_random_model
from qlora_engine.training.export import Exporter
from qlora_engine.training.merging import PARITY, merge
from schemas.training import Hyperparameters

SEEDS = 3


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark; about a minute, or half of one when quick."""
    results = []
    for architecture in RECIPES:
        with scratch() as folder:
            seeds = range(1 if quick else SEEDS)
            worst = max(_difference(architecture, seed, folder / str(seed)) for seed in seeds)
        console.print(f"export: {architecture}: {worst:.1e}")
        results.append(Result(f"largest difference of a logit, {architecture}", worst, "", PARITY))
    return results


def _difference(architecture: str, seed: int, folder: Path) -> float:
    base = make_random_model(folder / "base", architecture, seed)
    loaded = load_model(str(base), torch.device("cpu"))
    chosen = Hyperparameters(
        target_modalities=loaded.family.modalities, rank_pattern={"text": 12}, rank=4, seed=seed
    )
    injected = inject(loaded, chosen)
    torch.manual_seed(seed)
    for name, parameter in injected.trainable():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapter = folder / "adapter"
    adapter.mkdir()
    Exporter(loaded, injected, chosen, folder_sha256(base)).write(adapter, 1)
    return merge(base, adapter, folder / "merged").difference
