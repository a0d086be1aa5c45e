"""SmolVLM and SmolVLM2: one run of image tokens per frame, introduced by its time.

A checkpoint whose chat template knows pictures but no videos gets the frames as a row of pictures. The prompt
is what the model's own video processor builds, made here without it, because that needs pillow, torchvision
and num2words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch

from qlora_engine.errors import ModelRefused
from qlora_engine.models.families.base import ClipLayout, Moments, Pixels, Shown, Turn
from qlora_engine.models.families.chat import (
    Chat,
    ClipPrompts,
    Message,
    Piece,
    check_id,
    check_tokens,
    in_parts,
    refused,
)
from qlora_engine.models.families.numerals import spelled
from qlora_engine.models.families.preprocessor import colours, read_preprocessor
from schemas.adapters import Modality

FAKE = "<fake_token_around_image>"
IMAGE = "<image>"
GLOBAL = "<global-img>"
VIDEO = "<video>"
END = "<end_of_utterance>"
START = "<|im_start|>"

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""The family's published template; many of its checkpoints ship without one."""

_PARTS: dict[str, Modality] = {"vision_model": "vision", "connector": "connector", "text_model": "text"}


@dataclass(frozen=True)
class SmolVLMVision:
    """Every frame is a square, whatever the clip's shape, and a step in time of its own."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    patch_size: int
    scale_factor: int

    def layout(self, width: int, height: int, frames: int) -> ClipLayout:
        side = self.image_size // self.patch_size
        return ClipLayout(
            frames=frames,
            height=self.image_size,
            width=self.image_size,
            steps=frames,
            rows=side,
            columns=side,
            step_tokens=side**2 // self.scale_factor**2,
        )

    def within(self, frame_pixels: int) -> Self:
        raise ModelRefused(
            f"frame_pixels is {frame_pixels}, but every frame of this model is {self.image_size} x"
            f" {self.image_size}; leave frame_pixels out, or lower frames",
            code="fixed_frame_size",
        )

    def inputs(self, ids: torch.Tensor, rows: Sequence[Sequence[Pixels]]) -> dict[str, torch.Tensor]:
        """``pixel_values`` [rows, frames, 3, size, size]; rows with fewer frames are filled with zeros."""
        if not any(rows):
            return {}
        most = max(sum(len(clip.frames) for clip in row) for row in rows)
        first = next(clip.frames for row in rows for clip in row)
        pixels = first.new_zeros(len(rows), most, *first.shape[1:])
        for row, clips in enumerate(rows):
            place = 0
            for clip in clips:
                pixels[row, place : place + len(clip.frames)] = _not_blank(clip.frames)
                place += len(clip.frames)
        return {"pixel_values": pixels}


def _not_blank(frames: torch.Tensor) -> torch.Tensor:
    """The model takes a frame of only zeros for padding and drops it, so such a frame gets one tiny value."""
    blank = (frames == 0).flatten(1).all(dim=1)
    return frames + 1e-6 * blank.view(-1, 1, 1, 1).to(frames.dtype)


@dataclass(frozen=True)
class SmolVLMPrompts(ClipPrompts):
    """Prompts for one tokenizer."""

    end = END

    def pieces(self, turns: Sequence[Turn], clip: Shown | None) -> list[Piece]:
        self.chat.refuse_control_tokens(turns)
        if clip is None:
            return self.chat.pieces(in_parts(turns, ()))
        frame = FAKE + GLOBAL + IMAGE * clip.layout.step_tokens + FAKE
        pieces = self.chat.pieces(in_parts(turns, [{"type": "video"}]))
        if _count(pieces, VIDEO) == 1:
            return _filled(pieces, VIDEO, video_text(clip.moments, frame))
        frames: list[Message] = [{"type": "image"}] * clip.layout.frames
        pieces = self.chat.pieces(in_parts(turns, frames))
        if _count(pieces, IMAGE) == len(frames):
            return _filled(pieces, IMAGE, frame)
        shown = "".join(piece.text for piece in pieces)
        raise refused(f"renders {len(frames)} pictures as {shown[:120]!r}")

    def positions(self, ids: Sequence[int], clip: Shown | None) -> torch.Tensor:
        return torch.arange(len(ids))[None]


def video_text(moments: Moments, frame: str) -> str:
    """The text that stands for a clip; `frame` stands for each picture."""
    shown = "".join(
        f"\nFrame from {int(second // 60):02d}:{int(second % 60):02d}:{frame}" for second in moments.seconds
    )
    return (
        f"You are provided the following series of {spelled(len(moments.seconds))} frames from a"
        f" {timedelta(seconds=int(moments.duration))} [H:MM:SS] video.\n{shown}\n\n"
    )


def _count(pieces: Sequence[Piece], token: str) -> int:
    return sum(piece.text.count(token) for piece in pieces)


def _filled(pieces: Sequence[Piece], token: str, text: str) -> list[Piece]:
    return [Piece(piece.text.replace(token, text), piece.is_answer) for piece in pieces]


class SmolVLM:
    """The family of ``SmolVLMForConditionalGeneration``."""

    name = "smolvlm"
    model_types = frozenset({"smolvlm"})
    modalities: tuple[Modality, ...] = ("vision", "connector", "text")

    def model_class(self, model_type: str) -> Any:
        from transformers import SmolVLMForConditionalGeneration

        return SmolVLMForConditionalGeneration

    def modality(self, module_name: str) -> Modality | None:
        for part in module_name.split("."):
            if part in _PARTS:
                return _PARTS[part]
        return None

    def context_tokens(self, config: Any) -> int:
        return int(config.text_config.max_position_embeddings)

    def vision(self, config: Any, folder: Path) -> SmolVLMVision:
        described = read_preprocessor(folder)
        return SmolVLMVision(
            mean=colours(described, "image_mean"),
            std=colours(described, "image_std"),
            image_size=int(config.vision_config.image_size),
            patch_size=int(config.vision_config.patch_size),
            scale_factor=int(config.scale_factor),
        )

    def prompts(self, config: Any, tokenizer: Any) -> SmolVLMPrompts:
        vocabulary = check_tokens(tokenizer, (FAKE, IMAGE, GLOBAL, END))
        check_id(vocabulary, IMAGE, "image_token_id", config.image_token_id)
        # Many tokenizers of the family do not know <video>.
        return SmolVLMPrompts(Chat(tokenizer, CHAT_TEMPLATE, placeholders=(VIDEO,)))
