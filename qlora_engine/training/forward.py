"""One forward pass of a batch, the same for training and evaluation."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from qlora_engine.data.collate import Batch, Questions, normalised
from qlora_engine.device import compute_dtype
from qlora_engine.models.loading import Loaded
from qlora_engine.training.loss import predicting, summed_loss


@dataclass(frozen=True)
class Runner:
    """A model (the base, or the base with its adapter) and what its inputs look like."""

    model: Any
    base: Loaded

    @property
    def _dtype(self) -> torch.dtype:
        return compute_dtype(self.base.device)

    def _precision(self) -> AbstractContextManager[None]:
        """LoRA weights stay float32; on CUDA they are multiplied in bfloat16."""
        cuda = self.base.device.type == "cuda"
        return torch.autocast(self.base.device.type, torch.bfloat16, enabled=cuda)

    def _vision(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.base.family.vision_inputs(
            normalised(pixels, self.base.pixels, self.base.device, self._dtype)
        )

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy summed over the supervised tokens; logits are made only where a label needs them."""
        labels = batch.labels.to(self.base.device)
        wanted = predicting(labels)
        with self._precision():
            output = self.model(
                input_ids=batch.ids.to(self.base.device),
                attention_mask=batch.mask.to(self.base.device),
                logits_to_keep=wanted,
                use_cache=False,
                **self._vision(batch.pixels),
            )
        return summed_loss(output.logits, labels)

    def answers(self, questions: Questions, max_new_tokens: int) -> list[str]:
        """Greedy answers."""
        prompts = self.base.prompts
        ids = questions.ids.to(self.base.device)
        with self._precision():
            generated = self.model.generate(
                input_ids=ids,
                attention_mask=questions.mask.to(self.base.device),
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                eos_token_id=prompts.end_token_id,
                pad_token_id=prompts.pad_token_id,
                **self._vision(questions.pixels),
            )
        return [prompts.answer(row[ids.shape[1] :].tolist()) for row in generated]
