"""One forward pass of a batch, the same for training and evaluation."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from qlora_engine.adapters.temporal import showing
from qlora_engine.data.collate import Batch, Questions, normalised
from qlora_engine.data.frames import ClipFrames
from qlora_engine.models.attention import packed_mask
from qlora_engine.models.loading import Loaded
from qlora_engine.training.loss import Loss, chunked_loss, predicting, supervised


@dataclass(frozen=True)
class Runner:
    """A model (the base, or the base with its adapter) and what its inputs look like."""

    model: Any
    base: Loaded
    loss_chunk: int = 1024
    """Supervised tokens whose logits are made at once."""

    def _precision(self) -> AbstractContextManager[None]:
        """LoRA weights stay float32; on CUDA they are multiplied in bfloat16, unless float32 was chosen."""
        halved = self.base.device.type == "cuda" and self.base.dtype == torch.bfloat16
        return torch.autocast(self.base.device.type, torch.bfloat16, enabled=halved)

    def _showing(self, rows: Sequence[Sequence[ClipFrames]]) -> AbstractContextManager[None]:
        """Tells temporal-aware layers which clips they see."""
        return showing(self.model, [clip.layout for row in rows for clip in row])

    def vision(self, ids: torch.Tensor, rows: Sequence[Sequence[ClipFrames]]) -> dict[str, torch.Tensor]:
        """What forward and generate take beside ids, mask and positions."""
        vision = self.base.vision
        if vision is None:
            return {}
        return vision.inputs(
            ids,
            [[normalised(clip, vision, self.base.device, self.base.dtype) for clip in row] for row in rows],
        )

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the supervised tokens, of one packed row or of padded ones."""
        labels = batch.labels.to(self.base.device)
        hidden = self._hidden(batch)[predicting(labels)]
        return chunked_loss(hidden, self._whole.get_output_embeddings(), supervised(labels), self.loss_chunk)

    def logits(self, batch: Batch) -> torch.Tensor:
        """[rows, tokens, vocabulary]: all of them, which is much for a long row."""
        head = self._whole.get_output_embeddings()
        with self._precision():
            return head(self._hidden(batch).to(head.weight.dtype))  # type: ignore[no-any-return]

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """What the last layer says to each token, [rows, tokens, width]."""
        mask = packed_mask(batch.lengths) if batch.mask is None else batch.mask.to(self.base.device)
        ids = batch.ids.to(self.base.device)
        with self._precision(), self._showing(batch.clips):
            output = self._whole.base_model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=batch.position_ids.to(self.base.device),
                use_cache=False,
                **self.vision(ids, batch.clips),
            )
        return output.last_hidden_state  # type: ignore[no-any-return]

    @property
    def _whole(self) -> Any:
        """The transformers model, with adapters in it or without."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

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
                **self.vision(ids, questions.clips),
            )
        return [prompts.answer(row[ids.shape[1] :].tolist()) for row in generated]
