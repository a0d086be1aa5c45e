"""Qwen3-VL: time is in the prompt, ``<1.5 seconds>`` before each step, and the positions do not know it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qlora_engine.models.families import mrope, qwen_vl
from qlora_engine.models.families.base import Shown
from qlora_engine.models.families.preprocessor import colours, pixel_limits, read_preprocessor
from qlora_engine.models.families.qwen_vl import QwenPrompts, QwenVision, QwenVL, checked_chat

MOST_FRAME_TOKENS = 768
"""Of one frame, however few there are."""
CHAT_TEMPLATE = "{% for message in messages %}" + qwen_vl.TURNS


@dataclass(frozen=True)
class Qwen3Vision(QwenVision):
    """The limits are those of all frames together."""

    def resized(self, width: int, height: int, frames: int) -> tuple[int, int]:
        factor, temporal = self.factor, self.temporal_patch_size
        frames = max(frames, temporal)
        frame = min(MOST_FRAME_TOKENS * factor * factor, self.most_pixels // frames)
        most = max(frame, int(self.least_pixels * 1.05)) * frames
        if height < factor or width < factor:
            grow = max(factor / height, factor / width)
            height, width = int(height * grow), int(width * grow)
        tall, wide = (round(side / factor) * factor for side in (height, width))
        steps = round(frames / temporal) * temporal
        if steps * tall * wide > most:
            shrink = math.sqrt(frames * height * width / most)
            tall, wide = (
                max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
            )
        elif steps * tall * wide < self.least_pixels:
            grow = math.sqrt(self.least_pixels / (frames * height * width))
            tall, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
        return tall, wide


@dataclass(frozen=True)
class Qwen3Prompts(QwenPrompts):
    """One run of placeholders per step, introduced by its time."""

    temporal_patch_size: int

    def clip_text(self, clip: Shown) -> str:
        step = qwen_vl.VISION_START + qwen_vl.VIDEO * clip.layout.step_tokens + qwen_vl.VISION_END
        return "".join(f"<{second:.1f} seconds>{step}" for second in self.step_seconds(clip))

    def step_seconds(self, clip: Shown) -> list[float]:
        """The middle between the first and the last frame of each step, by their true timestamps."""
        seconds = clip.moments.seconds
        missing = -len(seconds) % self.temporal_patch_size
        filled = (*seconds, *[seconds[-1]] * missing)
        return [
            (filled[first] + filled[first + self.temporal_patch_size - 1]) / 2
            for first in range(0, len(filled), self.temporal_patch_size)
        ]

    def grid(self, clip: Shown) -> torch.Tensor:
        return mrope.block(1, clip.layout.rows // self.merge_size, clip.layout.columns // self.merge_size)


class Qwen3VL(QwenVL):
    """The family of ``Qwen3VLForConditionalGeneration``."""

    name = "qwen3_vl"
    model_types = frozenset({"qwen3_vl"})

    def model_class(self, model_type: str) -> Any:
        from transformers import Qwen3VLForConditionalGeneration

        return Qwen3VLForConditionalGeneration

    def vision(self, config: Any, folder: Path) -> Qwen3Vision:
        described = read_preprocessor(folder)
        tower = config.vision_config
        least, most = pixel_limits(described, least=128 * 32 * 32, most=768 * 32 * 32)
        return Qwen3Vision(
            mean=colours(described, "image_mean"),
            std=colours(described, "image_std"),
            patch_size=int(tower.patch_size),
            merge_size=int(tower.spatial_merge_size),
            temporal_patch_size=int(tower.temporal_patch_size),
            least_pixels=least,
            most_pixels=most,
            video_token_id=int(config.video_token_id),
        )

    def prompts(self, config: Any, tokenizer: Any) -> Qwen3Prompts:
        tower = config.vision_config
        return Qwen3Prompts(
            chat=checked_chat(config, tokenizer, CHAT_TEMPLATE),
            video_token_id=int(config.video_token_id),
            merge_size=int(tower.spatial_merge_size),
            temporal_patch_size=int(tower.temporal_patch_size),
        )
