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
class Tower:
    """What sees the clips of a SmolVLM."""

    width: int
    layers: int
    image_size: int
    patch_size: int = 14


@dataclass(frozen=True, slots=True)
class Configuration:
    """A model and a load."""

    architecture: str
    width: int
    mlp_width: int
    layers: int
    vocabulary: int
    words: int
    """Of each answer: as many tokens, nearly. Those of clips are given."""
    rows: int
    hyperparameters: dict[str, Any]
    tower: Tower | None = None
    tuned: bool = False
    """Whether the formula's constants were chosen on it."""

    @property
    def name(self) -> str:
        chosen = ", ".join(f"{name} {value}" for name, value in self.hyperparameters.items())
        return f"{self.architecture} {self.width} x {self.layers}, {self.rows} rows" + (
            f", {chosen}" if chosen else ""
        )


def main() -> None:
    folder = Path(sys.argv[1])
    described = json.loads((folder / "configuration.json").read_text("utf-8"))
    tower = described.pop("tower")
    configuration = Configuration(**described, tower=None if tower is None else Tower(**tower))
    if len(sys.argv) > 2:  # in another process, so that making the model is not measured
        make_model(configuration, folder / "model")
        make_data(configuration, folder)
        return
    print(json.dumps(train(configuration, folder)))


def make_model(configuration: Configuration, folder: Path) -> None:
    """Random weights are as large as learnt ones."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from qlora_engine.models.tiny_random import RECIPES, smolvlm_of, write_smolvlm

    tokenizer = RECIPES[configuration.architecture].tokenizer()
    heads = configuration.width // 64
    text = {
        "hidden_size": configuration.width,
        "intermediate_size": configuration.mlp_width,
        "num_hidden_layers": configuration.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 65536,
        "vocab_size": configuration.vocabulary,
    }
    if (tower := configuration.tower) is not None:
        vision = {
            "hidden_size": tower.width,
            "intermediate_size": 4 * tower.width,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.width // 64,
            "image_size": tower.image_size,
            "patch_size": tower.patch_size,
        }
        write_smolvlm(folder, tokenizer, smolvlm_of(tokenizer, text, vision))
        described = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
        described["size"] = {"longest_edge": tower.image_size}
        (folder / "preprocessor_config.json").write_text(json.dumps(described), "utf-8")
        return
    config = AutoConfig.for_model(
        configuration.architecture,
        **text,
        head_dim=64,
        layer_types=["full_attention"] * configuration.layers,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_data(configuration: Configuration, folder: Path) -> None:
    """`manifest.json`, and the clips that it names."""
    from qlora_engine.data.shapes import make_sample_dataset
    from qlora_engine.data.validation import validate_dataset
    from schemas.datasets import Example, Manifest, one_turn
    from schemas.training import DatasetValidationSpec

    if configuration.tower is not None:
        make_sample_dataset(folder / "data", clips=configuration.rows)
        spec = DatasetValidationSpec(dataset_folder=str(folder / "data"), output_folder=str(folder))
        validate_dataset(spec, lambda _: None)
        return
    (folder / "data").mkdir()
    answer = "b " * configuration.words
    numbers = range(1, configuration.rows + 1)
    rows = tuple(Example(messages=one_turn("a", f"{answer}{row}"), row=row) for row in numbers)
    (folder / "manifest.json").write_text(Manifest(clips=(), examples=rows).model_dump_json(), "utf-8")


def train(configuration: Configuration, folder: Path) -> dict[str, Any]:
    """Bytes predicted and held, and the parts of the sum."""
    import psutil
    import torch

    from qlora_engine.memory import return_memory_at_once
    from qlora_engine.stopping import StopWish
    from qlora_engine.training.attempt import train
    from qlora_engine.updates import TrainingBegan
    from schemas.adapters import MODALITIES
    from schemas.training import Hyperparameters, TrainingSpec

    chosen = {
        "batch_size": configuration.rows,
        "max_steps": STEPS,
        "held_out_fraction": 0.0,
        "target_modalities": ("text",) if configuration.tower is None else MODALITIES,
        "checkpoint_every_steps": 10_000,
        **configuration.hyperparameters,
    }
    spec = TrainingSpec(
        job_id="job_" + "0" * 32,
        attempt=1,
        hyperparameters=Hyperparameters.model_validate(chosen),
        model_folder=str(folder / "model"),
        dataset_folder=str(folder / "data"),
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
