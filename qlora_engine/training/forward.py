"""One forward pass of a batch, the same for training and evaluation."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from qlora_engine.adapters.temporal import showing
from qlora_engine.data.collate import Batch, Questions, normalised
from qlora_engine.data.frames import ClipFrames
from qlora_engine.models.loading import Loaded
from qlora_engine.training.loss import predicting, summed_loss


@dataclass(frozen=True)
class Runner:
    """A model (the base, or the base with its adapter) and what its inputs look like."""

    model: Any
    base: Loaded

    def _precision(self) -> AbstractContextManager[None]:
        """LoRA weights stay float32; on CUDA they are multiplied in bfloat16, unless float32 was chosen."""
        halved = self.base.device.type == "cuda" and self.base.dtype == torch.bfloat16
        return torch.autocast(self.base.device.type, torch.bfloat16, enabled=halved)

    def _showing(self, rows: Sequence[Sequence[ClipFrames]]) -> AbstractContextManager[None]:
        """Tells temporal-aware layers which clips they see."""
        return showing(self.model, [clip.layout for row in rows for clip in row])

    def _vision(self, ids: torch.Tensor, rows: Sequence[Sequence[ClipFrames]]) -> dict[str, torch.Tensor]:
        vision = self.base.vision
        if vision is None:
            return {}
        return vision.inputs(
            ids,
            [[normalised(clip, vision, self.base.device, self.base.dtype) for clip in row] for row in rows],
        )

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy summed over the supervised tokens; logits are made only where a label needs them."""
        ids, labels = batch.ids.to(self.base.device), batch.labels.to(self.base.device)
        wanted = predicting(labels)
        with self._precision(), self._showing(batch.clips):
            output = self.model(
                input_ids=ids,
                attention_mask=None if batch.mask is None else batch.mask.to(self.base.device),
                position_ids=batch.position_ids.to(self.base.device),
                logits_to_keep=wanted,
                use_cache=False,
                **self._vision(ids, batch.clips),
            )
        return summed_loss(output.logits, labels)

    def answers(self, questions: Questions, max_new_tokens: int) -> list[str]:
        """Greedy answers."""
        prompts = self.base.prompts
        ids = questions.ids.to(self.base.device)
        with self._precision(), self._showing(questions.clips):
            generated = self.model.generate(
                input_ids=ids,
                attention_mask=questions.mask.to(self.base.device),
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                eos_token_id=prompts.end_token_id,
                pad_token_id=prompts.pad_token_id,
                **self._vision(ids, questions.clips),
            )
        return [prompts.answer(row[ids.shape[1] :].tolist()) for row in generated]
