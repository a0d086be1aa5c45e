"""Writes the adapter in PEFT's own format, with a card and the facts that another program needs to use it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from qlora_engine.adapters.injection import Injected
from qlora_engine.data.sampling import Sampling
from qlora_engine.models.families.base import Vision
from qlora_engine.models.loading import Loaded
from qlora_engine.training.evaluation import Answer
from schemas.training import AdapterFacts, Hyperparameters

FACTS_FILE = "kinora_adapter.json"
RESIZE = "bicubic, antialiased, uint8: swscale with SWS_BICUBIC, bit-exact"
ANSWERS_FILE = "held_out_answers.jsonl"
CARD = """---
library_name: peft
tags: [lora, qlora, video-text-to-text]
---
# {architecture} adapter

LoRA adapter of rank {facts.rank} (alpha {facts.alpha:g}), trained for {facts.steps} steps on an NF4 base
(bitsandbytes, double quantisation, {dtype} compute). SHA-256 over the base's files:
`{facts.base_model_sha256}`.

```python
from peft import PeftModel
from transformers import BitsAndBytesConfig, {architecture}

quantization = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
)
base = {architecture}.from_pretrained(BASE_FOLDER, quantization_config=quantization)
model = PeftModel.from_pretrained(base, ADAPTER_FOLDER)
```

`{answers_file}` holds what this adapter answered to the clips that it was not trained on.
`{facts_file}` says how frames and prompts were prepared in training; prepare them in the same way.
On CPUs with AVX512-BF16 set `module.support_avx512bf16_for_cpu = False` on every `bitsandbytes.nn.Linear4bit`
before the first forward pass: the packed weights that bitsandbytes makes there give other answers.
"""


@dataclass(frozen=True)
class Exporter:
    """Knows everything about an adapter but the number of steps."""

    base: Loaded
    injected: Injected
    hyperparameters: Hyperparameters
    base_model_sha256: str

    def facts(self, steps: int) -> AdapterFacts:
        return AdapterFacts(
            family=self.base.family.name,
            base_model_sha256=self.base_model_sha256,
            rank=self.hyperparameters.rank,
            alpha=self.hyperparameters.alpha,
            trainable_parameters=self.injected.trainable_parameters,
            steps=steps,
        )

    def write(self, folder: Path, steps: int) -> AdapterFacts:
        """Write the adapter's files into `folder`, which exists."""
        facts = self.facts(steps)
        self._write_weights(folder)
        (folder / FACTS_FILE).write_text(json.dumps(self._description(facts), indent=2) + "\n", "utf-8")
        card = CARD.format(
            architecture=type(self.base.model).__name__,
            dtype=str(self.base.model.dtype).removeprefix("torch."),
            facts=facts,
            facts_file=FACTS_FILE,
            answers_file=ANSWERS_FILE,
        )
        (folder / "README.md").write_text(card, "utf-8")
        return facts

    def _write_weights(self, folder: Path) -> None:
        model = self.injected.model
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = model.peft_config["default"]
        config.save_pretrained(folder)
        described = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        described |= {
            "base_model_name_or_path": None,
            "inference_mode": True,
        }  # our folders mean nothing elsewhere
        described["target_modules"] = sorted(described["target_modules"])
        (folder / "adapter_config.json").write_text(
            json.dumps(described, indent=2, sort_keys=True) + "\n", "utf-8"
        )

    def _description(self, facts: AdapterFacts) -> dict[str, Any]:
        return {
            "facts": facts.model_dump(mode="json"),
            "hyperparameters": self.hyperparameters.model_dump(mode="json"),
            "frames": None if self.base.vision is None else self._frames(self.base.vision),
            "prompt": "the chat template, the video first and then the text, as the processor makes it",
        }

    def _frames(self, vision: Vision) -> dict[str, Any]:
        size = vision.image_size or "the clip's, as the family's video processor resizes it"
        return {
            **Sampling.of(self.hyperparameters).described(),
            "sampling": "what is shown in the middle of each of `count` equal stretches of time",
            "resize": {"width": size, "height": size, "method": RESIZE},
            "mean": list(vision.mean),
            "std": list(vision.std),
        }


def write_answers(folder: Path, answers: Sequence[Answer]) -> None:
    """Keep the tuned answers beside the adapter, so that others can reproduce them."""
    lines = "".join(answer.model_dump_json() + "\n" for answer in answers)
    (folder / ANSWERS_FILE).write_text(lines, "utf-8")
