"""Merges an adapter into its base: an ordinary checkpoint that needs neither PEFT nor bitsandbytes.

Run: ``python -m qlora_engine.training.merging BASE_FOLDER ADAPTER_FOLDER OUTPUT_FOLDER``.

The adapter was trained beside weights in 4 bits, so it is added to what those stand for, and not to the
original weights; a sum rounded to 4 bits again would lose it. Before anything is written, the merged model
has to give the logits of the base with its adapter.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from qlora_engine.adapters.files import load_adapter
from qlora_engine.data.collate import Collator
from qlora_engine.errors import EngineError
from qlora_engine.fingerprints import folder_sha256
from qlora_engine.models.attention import attend_by_sample
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.quantization import Quantization
from qlora_engine.models.uneven_widths import dequantized
from qlora_engine.models.validation import PROBE, Noise, tried
from qlora_engine.training.export import FACTS_FILE
from qlora_engine.training.forward import Runner
from schemas.training import AdapterFacts

PARITY = 1e-4
"""Most that a logit may differ by, in float32."""
BESIDE = (".json", ".jinja", ".txt", ".model")
"""Suffixes of what belongs to a checkpoint beside its weights."""
CARD = """---
library_name: transformers
tags: [merged-lora, {facts.family}]
---
# Merged {architecture}

Base (SHA-256 over its files `{facts.base_model_sha256}`), taken out of {facts.quantization},
with an adapter of {facts.steps} steps merged into it. Logits differ by at most {difference:.1e} from those
of the base with the adapter beside it, in float32. `{facts_file}` says how the adapter was trained, and how
frames and prompts were prepared: prepare them in the same way.
"""


class MergeRefused(EngineError):
    """An adapter cannot be merged, or the merged model gives other numbers."""

    code = "merge_refused"


def merge(base_folder: Path, adapter_folder: Path, output: Path) -> float:
    """Write the merged checkpoint into `output`; the largest difference of a logit.

    Raises:
        MergeRefused: the adapter belongs to another base, or the numbers differ by more than `PARITY`.
        TemporalMergeRefused: the adapter looks at other frames.
        AdapterUnusable, ModelRefused: the files cannot be used.
    """
    facts = _facts(adapter_folder)
    if (found := folder_sha256(base_folder)) != facts.base_model_sha256:
        raise MergeRefused(
            f"{base_folder.name} has the SHA-256 {found}, but the adapter was trained on"
            f" {facts.base_model_sha256}; give the base that it was trained on"
        )
    cpu = torch.device("cpu")
    quantization = Quantization(facts.quantization, facts.double_quantization, "float32")
    base = load_model(str(base_folder), cpu, quantization)
    whole = _taken_out(base)
    merged = load_adapter(whole, adapter_folder).merge_and_unload(safe_merge=True).eval()
    beside = load_adapter(base.model, adapter_folder)
    difference = _difference(base, beside, merged)
    if not difference <= PARITY:
        raise MergeRefused(
            f"the merged model's logits differ by {difference:.2e} from the adapter's, more than {PARITY:g};"
            " keep the adapter beside the base"
        )
    merged.save_pretrained(output)
    kept = (file for file in base_folder.iterdir() if file.suffix in BESIDE and not _written(file, output))
    for file in kept:
        shutil.copy(file, output / file.name)
    shutil.copy(adapter_folder / FACTS_FILE, output / FACTS_FILE)
    card = CARD.format(
        facts=facts, architecture=type(merged).__name__, difference=difference, facts_file=FACTS_FILE
    )
    (output / "README.md").write_text(card, "utf-8")
    return difference


def _facts(folder: Path) -> AdapterFacts:
    try:
        return AdapterFacts.model_validate(json.loads((folder / FACTS_FILE).read_text("utf-8"))["facts"])
    except (OSError, ValueError, KeyError, ValidationError) as error:
        raise MergeRefused(
            f"{folder.name}/{FACTS_FILE} does not say what the adapter is ({error}); download it again"
        ) from error


def _taken_out(base: Loaded) -> Any:
    """The base as an ordinary model whose weights are what the 4-bit ones stand for."""
    kind = type(base.model)
    whole = kind.from_pretrained(
        base.folder,
        dtype=torch.float32,
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    with torch.no_grad():
        for name, layer in base.linear_layers():
            whole.get_submodule(name).weight.copy_(dequantized(layer.weight))
    attend_by_sample(whole)
    return whole.eval()


def _difference(base: Loaded, beside: Any, merged: Any) -> float:
    """The largest, on a question and its answer about noise."""
    shown = tried(base)
    example = PROBE if shown is not None else PROBE.model_copy(update={"clip": None})
    batch = Collator(base.prompts, Noise(shown), base.context_tokens).batch([example])
    with torch.no_grad():
        one, other = (Runner(model, base).logits(batch) for model in (beside, merged))
    return float((one - other).abs().max())


def _written(file: Path, output: Path) -> bool:
    return (output / file.name).exists() or file.name.endswith(".safetensors.index.json")


def main() -> int:
    if len(sys.argv) != 4:
        sys.stderr.write("usage: python -m qlora_engine.training.merging BASE ADAPTER OUTPUT\n")
        return 2
    try:
        difference = merge(*map(Path, sys.argv[1:]))
    except EngineError as error:
        sys.stderr.write(f"not merged: {error.message}\n")
        return 1
    sys.stdout.write(f"merged; logits differ by at most {difference:.1e}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
