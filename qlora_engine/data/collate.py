"""Turns examples into tensors: token ids, labels on the answers only, positions, padded or packed rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from qlora_engine.data.frames import ClipFrames, ClipSource
from qlora_engine.errors import EngineError, SequenceTooLong
from qlora_engine.models.families.base import (
    Encoded,
    Pixels,
    Prompts,
    Shown,
    Vision,
    row_positions,
)
from schemas.datasets import Example

IGNORED = -100
"""The label of everything that is not supervised."""


@dataclass(frozen=True)
class Sample:
    """One example as tensors."""

    ids: torch.Tensor
    """[length]"""
    labels: torch.Tensor
    positions: torch.Tensor
    """[P, length], see `Prompts.positions`."""
    clip: ClipFrames | None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Batch:
    """Rows side by side; pixels are still uint8."""

    ids: torch.Tensor
    """[rows, length]"""
    mask: torch.Tensor | None
    """1 where a token stands, 0 on padding; None for one packed row, which has none."""
    labels: torch.Tensor
    positions: torch.Tensor
    """[rows, P, length]"""
    clips: tuple[tuple[ClipFrames, ...], ...]
    """Each row's, in the order of their placeholders."""
    lengths: tuple[int, ...]
    """Tokens of each sample, in their order."""
    with_clip: tuple[bool, ...]
    """Whether each sample shows a clip."""

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(self.lengths)

    @property
    def supervised(self) -> int:
        """Tokens that the loss is computed on."""
        return int((self.labels != IGNORED).sum())

    @property
    def supervised_lengths(self) -> list[int]:
        """The same by sample, of one packed row."""
        parts = torch.split(self.labels[0], list(self.lengths))
        return [int((labels != IGNORED).sum()) for labels in parts]

    @property
    def position_ids(self) -> torch.Tensor:
        """As forward takes them."""
        return row_positions(list(self.positions))

    def part(self, first: int, end: int) -> "Batch":
        """Samples [first, end) of one packed row; nothing is copied or decoded for it."""
        if self.mask is not None:
            raise ValueError("only a packed row can be split between its samples")
        tokens = slice(sum(self.lengths[:first]), sum(self.lengths[:end]))
        clips = slice(sum(self.with_clip[:first]), sum(self.with_clip[:end]))
        return Batch(
            ids=self.ids[:, tokens],
            mask=None,
            labels=self.labels[:, tokens],
            positions=self.positions[..., tokens],
            clips=(self.clips[0][clips],),
            lengths=self.lengths[first:end],
            with_clip=self.with_clip[first:end],
        )

    def __len__(self) -> int:
        return len(self.ids)


def padded(samples: Sequence[Sample], pad_token_id: int) -> Batch:
    """One sample a row, padded on the right."""
    width = max(map(len, samples))
    ids = torch.stack([_wider(sample.ids, width, pad_token_id) for sample in samples])
    mask = torch.stack([_wider(torch.ones_like(sample.ids), width, 0) for sample in samples])
    return Batch(
        ids=ids,
        mask=mask,
        labels=torch.stack([_wider(sample.labels, width, IGNORED) for sample in samples]),
        positions=torch.stack([_wider(sample.positions, width, 0) for sample in samples]),
        clips=tuple(() if sample.clip is None else (sample.clip,) for sample in samples),
        lengths=tuple(map(len, samples)),
        with_clip=tuple(sample.clip is not None for sample in samples),
    )


def packed(samples: Sequence[Sample]) -> Batch:
    """All samples in one row without padding; `models.attention` keeps them apart by their lengths."""

    def joined(field: str) -> torch.Tensor:
        return torch.cat([getattr(sample, field) for sample in samples], dim=-1)[None]

    return Batch(
        ids=joined("ids"),
        mask=None,
        labels=joined("labels"),
        positions=joined("positions"),
        clips=(tuple(sample.clip for sample in samples if sample.clip is not None),),
        lengths=tuple(map(len, samples)),
        with_clip=tuple(sample.clip is not None for sample in samples),
    )


def _wider(tensor: torch.Tensor, width: int, fill: int) -> torch.Tensor:
    return functional.pad(tensor, (0, width - tensor.shape[-1]), value=fill)


@dataclass(frozen=True)
class Questions:
    """Prompts without answers, padded on the left for generation."""

    ids: torch.Tensor
    mask: torch.Tensor
    clips: tuple[tuple[ClipFrames, ...], ...]


@dataclass(frozen=True)
class Collator:
    """Makes batches for one tokenizer and one folder of clips."""

    prompts: Prompts
    frames: ClipSource
    context_tokens: int

    def sample(self, example: Example) -> Sample:
        """
        Raises:
            ClipError: the clip cannot be used.
            SequenceTooLong, ControlTokenInCaption, EmptyResponse: the row cannot be used.
        """
        clip = self.frames.of(example.clip) if example.clip else None
        shown = None if clip is None else clip.shown
        encoded = self.encoded(example, shown)
        ids = torch.tensor(encoded.ids)
        labels = ids.masked_fill(~torch.tensor(encoded.supervised), IGNORED)
        labels[0] = IGNORED  # nothing of this sample says what its first token is
        return Sample(
            ids=ids,
            labels=labels,
            positions=self.prompts.positions(encoded.ids, shown),
            clip=clip,
        )

    def batch(self, examples: Sequence[Example]) -> Batch:
        """The examples in one packed row, which has no padding; errors as in `sample`."""
        self.frames.ahead(example.clip for example in examples if example.clip)
        return packed([self.sample(example) for example in examples])

    def questions(self, examples: Sequence[Example]) -> Questions:
        """As `batch`, but without the last answers."""
        clips = [self.frames.of(example.clip) if example.clip else None for example in examples]
        questions = []
        for example, clip in zip(examples, clips, strict=True):
            encoded = self.encoded(example, None if clip is None else clip.shown)
            questions.append(encoded.ids[: encoded.last_answer])
        width = max(map(len, questions))
        ids = torch.full((len(questions), width), self.prompts.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, question in enumerate(questions):
            ids[row, width - len(question) :] = torch.tensor(question)
            mask[row, width - len(question) :] = 1
        return Questions(ids, mask, tuple(() if clip is None else (clip,) for clip in clips))

    def encoded(self, example: Example, clip: Shown | None) -> Encoded:
        """The example's tokens.

        Raises:
            SequenceTooLong, ControlTokenInCaption, EmptyResponse: the row cannot be used.
        """
        try:
            encoded = self.prompts.encode(example.messages, clip)
        except EngineError as error:
            raise type(error)(f"{example.where}: {error.message}", code=error.code) from error
        if len(encoded.ids) > self.context_tokens:
            shown = "" if clip is None else f" with {clip.layout.frames} frames"
            raise SequenceTooLong(
                f"{example.where} makes {len(encoded.ids)} tokens{shown},"
                f" but the model takes {self.context_tokens}; lower frames or shorten the caption"
            )
        return encoded


def normalised(clip: ClipFrames, vision: Vision, device: torch.device, dtype: torch.dtype) -> Pixels:
    """uint8 frames as the numbers that the model was trained on."""
    values = clip.pixels.to(device, torch.float32) / 255
    mean = torch.tensor(vision.mean, device=device).view(3, 1, 1)
    std = torch.tensor(vision.std, device=device).view(3, 1, 1)
    return Pixels(((values - mean) / std).to(dtype), clip.shown)
