"""Turns examples into tensors: token ids, labels on the answer only, padding, normalised pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qlora_engine.data.frames import ClipFrames, Frames
from qlora_engine.errors import EngineError, SequenceTooLong
from qlora_engine.models.families.base import Moments, PixelFormat, Prompts
from schemas.datasets import Example

IGNORED = -100
"""The label of everything that is not supervised."""


@dataclass(frozen=True)
class Batch:
    """Examples side by side, padded; pixels are still uint8."""

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    pixels: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.mask.sum())

    @property
    def supervised(self) -> int:
        """Tokens that the loss is computed on."""
        return int((self.labels != IGNORED).sum())

    def __len__(self) -> int:
        return len(self.ids)

    def parts(self, size: int) -> list["Batch"]:
        """The same examples in forward passes of at most `size`, each without needless padding."""
        return [self._part(start, start + size) for start in range(0, len(self), size)]

    def _part(self, start: int, end: int) -> "Batch":
        mask = self.mask[start:end]
        width = int(mask.sum(dim=1).max())
        return Batch(
            ids=self.ids[start:end, :width],
            mask=mask[:, :width],
            labels=self.labels[start:end, :width],
            pixels=self.pixels[start:end],
        )


@dataclass(frozen=True)
class Questions:
    """Prompts without answers, padded on the left for generation."""

    ids: torch.Tensor
    mask: torch.Tensor
    pixels: torch.Tensor


@dataclass(frozen=True)
class Collator:
    """Makes batches for one tokenizer and one folder of clips."""

    prompts: Prompts
    frames: Frames
    context_tokens: int

    def batch(self, examples: Sequence[Example]) -> Batch:
        """
        Raises:
            ClipError: a clip cannot be used.
            SequenceTooLong, ControlTokenInCaption: a caption cannot be used.
        """
        clips = [self.frames.of(example.clip) for example in examples]
        pairs = [self.encoded(example, clip.moments) for example, clip in zip(examples, clips, strict=True)]
        width = max(len(prompt) + len(response) for prompt, response in pairs)
        ids = torch.full((len(pairs), width), self.prompts.pad_token_id)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for row, (prompt, response) in enumerate(pairs):
            end = len(prompt) + len(response)
            ids[row, :end] = torch.tensor(prompt + response)
            mask[row, :end] = 1
            labels[row, len(prompt) : end] = torch.tensor(response)
        return Batch(ids, mask, labels, _pixels(clips))

    def questions(self, examples: Sequence[Example]) -> Questions:
        """As `batch`, but without the answers."""
        clips = [self.frames.of(example.clip) for example in examples]
        encoded = [
            self.encoded(example, clip.moments)[0] for example, clip in zip(examples, clips, strict=True)
        ]
        width = max(map(len, encoded))
        ids = torch.full((len(encoded), width), self.prompts.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(encoded):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        return Questions(ids, mask, _pixels(clips))

    def encoded(self, example: Example, moments: Moments) -> tuple[list[int], list[int]]:
        """The prompt's tokens and the answer's, for frames that are shown at `moments`.

        Raises:
            SequenceTooLong, ControlTokenInCaption: the row cannot be used.
        """
        try:
            prompt = self.prompts.prompt_ids(example.prompt, moments)
            response = self.prompts.response_ids(example.response)
        except EngineError as error:
            raise type(error)(f"captions row {example.row}: {error.message}", code=error.code) from error
        if len(prompt) + len(response) > self.context_tokens:
            raise SequenceTooLong(
                f"captions row {example.row} makes {len(prompt) + len(response)} tokens with"
                f" {len(moments.seconds)} frames, but the model takes {self.context_tokens};"
                " lower frames or shorten the caption"
            )
        return prompt, response


def _pixels(clips: Sequence[ClipFrames]) -> torch.Tensor:
    return torch.stack([clip.pixels for clip in clips])


def normalised(
    pixels: torch.Tensor, wanted: PixelFormat, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """uint8 frames [clips, frames, 3, size, size] as the numbers that the model was trained on."""
    values = pixels.to(device, torch.float32) / 255
    mean = torch.tensor(wanted.mean, device=device).view(3, 1, 1)
    std = torch.tensor(wanted.std, device=device).view(3, 1, 1)
    return ((values - mean) / std).to(dtype)
