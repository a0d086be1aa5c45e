"""One training in a process of its own: `python -m benchmarks.engine.preflight_runs FOLDER`.

FOLDER holds `configuration.json`. Makes a model of those sizes with random weights and rows of that length,
trains a few steps, and prints what was predicted and what the process held at most, less what it held after
its imports, as one JSON object.
"""

import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 2


@dataclass(frozen=True, slots=True)
class Configuration:
    """A model and a load."""

    width: int
    mlp_width: int
    layers: int
    vocabulary: int
    words: int
    """Of each answer: as many tokens, nearly."""
    batch: int
    hyperparameters: dict[str, Any]


def main() -> None:
    folder = Path(sys.argv[1])
    configuration = Configuration(**json.loads((folder / "configuration.json").read_text("utf-8")))
    if len(sys.argv) > 2:  # in another process, so that making the model is not measured
        make_model(configuration, folder / "model")
        return
    print(json.dumps(train(configuration, folder)))


def make_model(configuration: Configuration, folder: Path) -> None:
    """Random weights are as large as learnt ones."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from qlora_engine.models.tiny_random import RECIPES

    tokenizer = RECIPES["llama"].tokenizer()
    torch.manual_seed(0)
    heads = configuration.width // 64
    config = LlamaConfig(
        hidden_size=configuration.width,
        intermediate_size=configuration.mlp_width,
        num_hidden_layers=configuration.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=65536,
        vocab_size=configuration.vocabulary,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(configuration: Configuration, folder: Path) -> dict[str, Any]:
    """Bytes predicted and held, and the parts of the sum."""
    import psutil
    import torch

    from qlora_engine.memory import return_memory_at_once
    from qlora_engine.stopping import StopWish
    from qlora_engine.training.attempt import train
    from qlora_engine.updates import TrainingBegan
    from schemas.datasets import Example, Manifest, one_turn
    from schemas.training import Hyperparameters, TrainingSpec

    answer = "b " * configuration.words
    numbers = range(1, configuration.batch + 1)
    rows = tuple(Example(messages=one_turn("a", f"{answer}{row}"), row=row) for row in numbers)
    (folder / "manifest.json").write_text(Manifest(clips=(), examples=rows).model_dump_json(), "utf-8")
    chosen = {
        "batch_size": configuration.batch,
        "max_steps": STEPS,
        "held_out_fraction": 0.0,
        "target_modalities": ("text",),
        "checkpoint_every_steps": 10_000,
        **configuration.hyperparameters,
    }
    spec = TrainingSpec(
        job_id="job_" + "0" * 32,
        attempt=1,
        hyperparameters=Hyperparameters.model_validate(chosen),
        model_folder=str(folder / "model"),
        dataset_folder=str(folder),
        manifest_file=str(folder / "manifest.json"),
        output_folder=str(folder / "output"),
    )
    said: list[TrainingBegan] = []

    def emit(update: object) -> None:
        if isinstance(update, TrainingBegan):
            said.append(update)

    return_memory_at_once()  # as where memory is scarce: what is predicted is what tensors take
    imported = psutil.Process().memory_info().rss
    train(spec, emit, StopWish(), torch.device("cpu"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    preflight = said[0].preflight
    assert preflight is not None
    return {
        "predicted": preflight.peak_bytes,
        "held": peak - imported,
        "parts": {part.name: part.size_bytes for part in preflight.parts},
    }


if __name__ == "__main__":
    main()
