"""Writes the adapter in PEFT's own format, with a card and the facts that another program needs to use it."""

import json
from collections.abc import Mapping, Sequence
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
from qlora_engine.training.card import ANSWERS_FILE, CARD_FILE, FACTS_FILE, adapter_card
from qlora_engine.training.evaluation import Answer
from schemas.training import AdapterFacts, Hyperparameters, MergedFacts

RESIZE = "bicubic, antialiased, uint8: swscale with SWS_BICUBIC, bit-exact"


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

    def write(self, folder: Path, steps: int, run: Mapping[str, Any] | None = None) -> AdapterFacts:
        """Write the adapter's files into `folder`, which exists; `run` is the training's record."""
        facts = self.facts(steps)
        save_adapter(self.injected.model, folder)
        _write(folder, self._description(facts, run), type(self.base.model).__name__)
        return facts

    def _description(self, facts: AdapterFacts, run: Mapping[str, Any] | None) -> dict[str, Any]:
        config = self.injected.model.peft_config["default"]
        described = {
            "facts": facts.model_dump(mode="json"),
            "hyperparameters": self.hyperparameters.model_dump(mode="json"),
            "rank_pattern": config.rank_pattern,
            "alpha_pattern": config.alpha_pattern,
            "frames": None if self.base.vision is None else self._frames(self.base.vision),
            "prompt": "the chat template, the video first and then the text, as the processor makes it",
        }
        return described if run is None else described | {"run": run}

    def _frames(self, vision: Vision) -> dict[str, Any]:
        size = vision.image_size or "the clip's, as the family's video processor resizes it"
        return {
            **(self.sampling or Sampling.of(self.hyperparameters)).described(),
            "sampling": "what is shown in the middle of each of `count` equal stretches of time",
            "resize": {
                "width": size,
                "height": size,
                "most_pixels": self.hyperparameters.frame_pixels,
                "method": RESIZE,
            },
            "mean": list(vision.mean),
            "std": list(vision.std),
        }


def _write(folder: Path, described: Mapping[str, Any], architecture: str) -> None:
    (folder / FACTS_FILE).write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    (folder / CARD_FILE).write_text(adapter_card(described, architecture), "utf-8")


def note_merged(folder: Path, merged: MergedFacts, architecture: str) -> None:
    """Say in the adapter's files that the merged model lies below `MERGED_FOLDER`."""
    described = json.loads((folder / FACTS_FILE).read_text("utf-8"))
    described["facts"]["merged"] = merged.model_dump(mode="json")
    _write(folder, described, architecture)


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
