"""What Qwen2.5-VL and Qwen3-VL have in common: frames in patches of two, sizes that follow the clip, M-RoPE.

Pixels and prompts are what transformers' own processors make, without them. Their limits of a clip's size
hold for every frame (``cap_pixels_per_frame``), as in the reference implementation and from transformers
5.22 on by default.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from qlora_engine.errors import ClipShapeRefused
from qlora_engine.models.families import mrope
from qlora_engine.models.families.base import ClipLayout, Pixels, Shown, Turn
from qlora_engine.models.families.chat import (
    Chat,
    ClipPrompts,
    Piece,
    check_id,
    check_tokens,
    in_parts,
    refused,
)
from schemas.adapters import Modality

VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
VIDEO = "<|video_pad|>"
IMAGE = "<|image_pad|>"
START = "<|im_start|>"
END = "<|im_end|>"
NEEDED = (VIDEO, VISION_START, VISION_END, START, END)
MOST_OBLONG = 200
"""Times as long as wide that a clip may be."""

TURNS = (
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% endif %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class QwenVision(ABC):
    """Frames keep their proportions; their sides become multiples of a patch of merged patches."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    least_pixels: int
    """``shortest_edge`` of the checkpoint's preprocessor file; what it bounds, the family knows."""
    most_pixels: int
    video_token_id: int
    image_size: int = 0
    frame_pixels: int | None = None
    """What a job allows a frame at most, below all limits of the checkpoint."""

    @property
    def factor(self) -> int:
        """Sides are multiples of so many pixels."""
        return self.patch_size * self.merge_size

    @abstractmethod
    def resized(self, width: int, height: int, frames: int) -> tuple[int, int]:
        """Height and width that frames of this size get."""

    def layout(self, width: int, height: int, frames: int) -> ClipLayout:
        if max(width, height) > MOST_OBLONG * min(width, height):
            raise ClipShapeRefused(
                f"the clip is {width} x {height}, more than {MOST_OBLONG} times as long as wide; crop it"
            )
        tall, wide = self._allowed(*self.resized(width, height, frames))
        rows, columns = tall // self.patch_size, wide // self.patch_size
        return ClipLayout(
            frames=frames,
            height=tall,
            width=wide,
            steps=-(-frames // self.temporal_patch_size),
            rows=rows,
            columns=columns,
            step_tokens=rows * columns // self.merge_size**2,
        )

    def within(self, frame_pixels: int) -> Self:
        return replace(self, frame_pixels=frame_pixels)

    def _allowed(self, tall: int, wide: int) -> tuple[int, int]:
        if self.frame_pixels is None or tall * wide <= self.frame_pixels:
            return tall, wide
        shrink = math.sqrt(tall * wide / self.frame_pixels)
        tall, wide = (max(1, int(side / shrink / self.factor)) * self.factor for side in (tall, wide))
        # One side may have been held up at its least.
        most = max(1, self.frame_pixels // self.factor // min(tall, wide))
        return min(tall, most * self.factor), min(wide, most * self.factor)

    def inputs(self, ids: torch.Tensor, rows: Sequence[Sequence[Pixels]]) -> dict[str, torch.Tensor]:
        """All clips' patches, one after the other, and the grid (time, rows, columns) of each."""
        clips = [clip for row in rows for clip in row]
        if not clips:
            return {}
        layouts = [clip.shown.layout for clip in clips]
        grids = [(layout.steps, layout.rows, layout.columns) for layout in layouts]
        return {
            "pixel_values_videos": torch.cat([self.patches(clip.frames) for clip in clips]),
            "video_grid_thw": torch.tensor(grids, device=ids.device),
            "mm_token_type_ids": 2 * (ids == self.video_token_id).int(),
        }

    def patches(self, frames: torch.Tensor) -> torch.Tensor:
        """[frames, 3, height, width] as [steps * rows * columns, 3 * temporal * patch * patch].

        The patches of one merged token follow one another. The last frame is repeated to fill a step.
        """
        missing = -len(frames) % self.temporal_patch_size
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        steps, (height, width) = len(frames) // self.temporal_patch_size, frames.shape[2:]
        inner = (self.merge_size, self.patch_size)
        tiles = frames.reshape(
            steps, self.temporal_patch_size, 3, height // self.factor, *inner, width // self.factor, *inner
        )
        # From (step, frame, colour, row, in row, y, column, in column, x) to
        # (step, row, column, in row, in column) of (colour, frame, y, x).
        return tiles.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).flatten(5).flatten(0, 4)


@dataclass(frozen=True)
class QwenPrompts(ClipPrompts):
    """Prompts for one tokenizer."""

    end = END
    video_token_id: int
    merge_size: int

    @abstractmethod
    def clip_text(self, clip: Shown) -> str:
        """The text that stands for a clip, in place of one placeholder."""

    @abstractmethod
    def grid(self, clip: Shown) -> torch.Tensor:
        """The `mrope.block` that each run of placeholders stands in."""

    def pieces(self, turns: Sequence[Turn], clip: Shown | None) -> list[Piece]:
        self.chat.refuse_control_tokens(turns)
        pieces = self.chat.pieces(in_parts(turns, () if clip is None else [{"type": "video"}]))
        if (found := sum(piece.text.count(VIDEO) for piece in pieces)) != (clip is not None):
            shown = "".join(piece.text for piece in pieces)
            raise refused(f"renders {int(clip is not None)} clip as {found} {VIDEO}: {shown[:120]!r}")
        if clip is None:
            return pieces
        return [Piece(piece.text.replace(VIDEO, self.clip_text(clip)), piece.is_answer) for piece in pieces]

    def positions(self, ids: Sequence[int], clip: Shown | None) -> torch.Tensor:
        grid = torch.empty(3, 0, dtype=torch.long) if clip is None else self.grid(clip)
        return mrope.positions(ids, self.video_token_id, grid)


class QwenVL:
    """What both families say of a checkpoint."""

    modalities: tuple[Modality, ...] = ("vision", "connector", "text")

    def modality(self, module_name: str) -> Modality | None:
        """The mergers between tower and language model are the connector, those of inner layers too."""
        parts = module_name.split(".")
        if "visual" in parts:
            return "connector" if "merger" in parts or "deepstack_merger_list" in parts else "vision"
        return "text" if "language_model" in parts else None

    def context_tokens(self, config: Any) -> int:
        return int(config.text_config.max_position_embeddings)


def checked_chat(config: Any, tokenizer: Any, template: str) -> Chat:
    """The tokenizer with the family's template.

    Raises:
        ModelRefused: a token that the family needs is missing or has another number.
    """
    vocabulary = check_tokens(tokenizer, NEEDED)
    check_id(vocabulary, VIDEO, "video_token_id", config.video_token_id)
    return Chat(tokenizer, template, placeholders=(VIDEO, IMAGE))
