"""Writes the adapter in PEFT's own format, with a card and the facts that another program needs to use it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qlora_engine.adapters.files import save_adapter
from qlora_engine.adapters.injection import Injected
from qlora_engine.adapters.ranks.resize import ranks_of
from qlora_engine.data.sampling import Sampling
from qlora_engine.models.families.base import Vision
from qlora_engine.models.loading import Loaded
from qlora_engine.training.evaluation import Answer
from schemas.training import AdapterFacts, Hyperparameters, MergedFacts

FACTS_FILE = "kinora_adapter.json"
RESIZE = "bicubic, antialiased, uint8: swscale with SWS_BICUBIC, bit-exact"
ANSWERS_FILE = "held_out_answers.jsonl"
CARD = """---
library_name: peft
tags: [lora, qlora, video-text-to-text]
---
# {architecture} adapter

{kind} adapter of {ranks} (alpha {alpha}), trained for {facts.steps} steps on a base in
{facts.quantization} (bitsandbytes, {double} double quantisation, {facts.compute_dtype} compute). SHA-256 over
the base's files: `{facts.base_model_sha256}`.

```python
import torch
from transformers import BitsAndBytesConfig, {architecture}
{loader}

quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="{facts.quantization}",
    bnb_4bit_use_double_quant={facts.double_quantization},
    bnb_4bit_compute_dtype=torch.{facts.compute_dtype},
)
base = {architecture}.from_pretrained(
    BASE_FOLDER, dtype=torch.{facts.compute_dtype}, quantization_config=quantization
)
{load}
```
{caution}

`{answers_file}` holds what this adapter answered to the clips that it was not trained on.
`{facts_file}` says how frames and prompts were prepared in training; prepare them in the same way.
On CPUs with AVX512-BF16 set `module.support_avx512bf16_for_cpu = False` on every `bitsandbytes.nn.Linear4bit`
before the first forward pass: the packed weights that bitsandbytes makes there give other answers.
"""
STOCK = {
    "kind": "LoRA",
    "loader": "from peft import PeftModel",
    "load": "model = PeftModel.from_pretrained(base, ADAPTER_FOLDER)",
    "caution": "",
}
TEMPORAL = {
    "kind": "Temporal-aware LoRA",
    "loader": "from temporal_lora import load_temporal_adapter",
    "load": "model, clips = load_temporal_adapter(base, ADAPTER_FOLDER)\nclips[:] = [4]  # frames",
    "caution": """
What a frame gives depends on the frames before and after it, which stock PEFT knows nothing of: it refuses
this adapter (`TEMPORAL_LORA`), and merging is not possible. `temporal_lora.py` is in Kinora's docs/examples;
it needs torch and peft.
""",
}


@dataclass
class Exporter:
    """Knows everything about an adapter but the number of steps."""

    base: Loaded
    injected: Injected
    hyperparameters: Hyperparameters
    base_model_sha256: str
    sampling: Sampling | None = None
    """Where it is no longer what the job asked for."""

    def facts(self, steps: int) -> AdapterFacts:
        ranks = set(ranks_of(self.injected.model).values())
        uniform = ranks == {self.hyperparameters.rank}
        return AdapterFacts(
            family=self.base.family.name,
            base_model_sha256=self.base_model_sha256,
            rank=self.hyperparameters.rank,
            alpha=self.hyperparameters.alpha,
            trainable_parameters=self.injected.trainable_parameters,
            steps=steps,
            lora_variant=self.hyperparameters.lora_variant,
            temporal=self.hyperparameters.temporal,
            quantization=self.hyperparameters.quantization,
            double_quantization=self.hyperparameters.double_quantization,
            compute_dtype="bfloat16" if self.base.dtype == torch.bfloat16 else "float32",
            lowest_rank=None if uniform else min(ranks),
            highest_rank=None if uniform else max(ranks),
        )

    def write(self, folder: Path, steps: int) -> AdapterFacts:
        """Write the adapter's files into `folder`, which exists."""
        facts = self.facts(steps)
        save_adapter(self.injected.model, folder)
        (folder / FACTS_FILE).write_text(json.dumps(self._description(facts), indent=2) + "\n", "utf-8")
        card = CARD.format(
            architecture=type(self.base.model).__name__,
            facts=facts,
            **_ranks(facts),
            double="with" if facts.double_quantization else "without",
            **(TEMPORAL if facts.temporal else STOCK),
            facts_file=FACTS_FILE,
            answers_file=ANSWERS_FILE,
        )
        (folder / "README.md").write_text(card, "utf-8")
        return facts

    def _description(self, facts: AdapterFacts) -> dict[str, Any]:
        config = self.injected.model.peft_config["default"]
        return {
            "facts": facts.model_dump(mode="json"),
            "hyperparameters": self.hyperparameters.model_dump(mode="json"),
            "rank_pattern": config.rank_pattern,
            "alpha_pattern": config.alpha_pattern,
            "frames": None if self.base.vision is None else self._frames(self.base.vision),
            "prompt": "the chat template, the video first and then the text, as the processor makes it",
        }

    def _frames(self, vision: Vision) -> dict[str, Any]:
        size = vision.image_size or "the clip's, as the family's video processor resizes it"
        return {
            **(self.sampling or Sampling.of(self.hyperparameters)).described(),
            "sampling": "what is shown in the middle of each of `count` equal stretches of time",
            "resize": {"width": size, "height": size, "method": RESIZE},
            "mean": list(vision.mean),
            "std": list(vision.std),
        }


def _ranks(facts: AdapterFacts) -> dict[str, str]:
    """For the card."""
    if facts.lowest_rank is None:
        return {"ranks": f"rank {facts.rank}", "alpha": f"{facts.alpha:g}"}
    return {
        "ranks": f"ranks {facts.lowest_rank} to {facts.highest_rank}",
        "alpha": f"{facts.alpha:g} for rank {facts.rank}, others by layer",
    }


def note_merged(folder: Path, merged: MergedFacts) -> None:
    """Say in the adapter's files that the merged model lies below `MERGED_FOLDER`."""
    described = json.loads((folder / FACTS_FILE).read_text("utf-8"))
    described["facts"]["merged"] = merged.model_dump(mode="json")
    (folder / FACTS_FILE).write_text(json.dumps(described, indent=2) + "\n", "utf-8")


def write_answers(folder: Path, answers: Sequence[Answer], base_answers: Sequence[Answer]) -> None:
    """Keep the tuned answers beside the adapter, so that others can reproduce them, and the base's.

    Both are to the same rows in the same order; `base_answers` is empty where they are not known.
    """
    told: Sequence[str | None] = [each.answer for each in base_answers] or [None] * len(answers)
    lines = "".join(
        answer.model_copy(update={"base_answer": base}).model_dump_json() + "\n"
        for answer, base in zip(answers, told, strict=True)
    )
    (folder / ANSWERS_FILE).write_text(lines, "utf-8")
