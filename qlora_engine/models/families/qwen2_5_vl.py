"""Qwen2.5-VL: time is in the positions, which grow with the seconds between two steps."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qlora_engine.models.families import mrope, qwen_vl
from qlora_engine.models.families.base import Pixels, Shown
from qlora_engine.models.families.preprocessor import colours, pixel_limits, read_preprocessor
from qlora_engine.models.families.qwen_vl import QwenPrompts, QwenVision, QwenVL, checked_chat

MOST_VIDEO_TOKENS = 128_000
"""The context that the total of a clip's pixels is reckoned from; 90 % of it are for the clip."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
) + qwen_vl.TURNS


@dataclass(frozen=True)
class Qwen25Vision(QwenVision):
    """The limits are those of one frame."""

    def resized(self, width: int, height: int, frames: int) -> tuple[int, int]:
        factor = self.factor
        total = int(MOST_VIDEO_TOKENS * factor * factor * 0.9)
        most = min(self.most_pixels, total * self.temporal_patch_size // frames)
        most = max(most, int(self.least_pixels * 1.05))
        tall, wide = (max(1, round(side / factor)) * factor for side in (height, width))
        if tall * wide > most:
            shrink = math.sqrt(height * width / most)
            tall, wide = (
                max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
            )
        elif tall * wide < self.least_pixels:
            grow = math.sqrt(self.least_pixels / (height * width))
            tall, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
        return tall, wide

    def inputs(self, ids: torch.Tensor, rows: Any) -> dict[str, torch.Tensor]:
        given = super().inputs(ids, rows)
        if given:
            clips: list[Pixels] = [clip for row in rows for clip in row]
            seconds = [seconds_per_step(clip.shown, self.temporal_patch_size) for clip in clips]
            given["second_per_grid_ts"] = torch.tensor(seconds, device=ids.device)
        return given


def seconds_per_step(clip: Shown, temporal_patch_size: int) -> float:
    """Seconds between two steps, by the clip's true length."""
    return temporal_patch_size * clip.moments.duration / clip.layout.frames


@dataclass(frozen=True)
class Qwen25Prompts(QwenPrompts):
    """All placeholders of a clip in one run."""

    tokens_per_second: int
    temporal_patch_size: int

    def clip_text(self, clip: Shown) -> str:
        return qwen_vl.VIDEO * clip.layout.tokens

    def grid(self, clip: Shown) -> torch.Tensor:
        layout = clip.layout
        seconds = torch.tensor(seconds_per_step(clip, self.temporal_patch_size), dtype=torch.float32)
        rows, columns = layout.rows // self.merge_size, layout.columns // self.merge_size
        return mrope.block(layout.steps, rows, columns, float(self.tokens_per_second * seconds))


class Qwen25VL(QwenVL):
    """The family of ``Qwen2_5_VLForConditionalGeneration``."""

    name = "qwen2_5_vl"
    model_types = frozenset({"qwen2_5_vl"})

    def model_class(self, model_type: str) -> Any:
        from transformers import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration

    def vision(self, config: Any, folder: Path) -> Qwen25Vision:
        described = read_preprocessor(folder)
        tower = config.vision_config
        least, most = pixel_limits(described, least=128 * 28 * 28, most=768 * 28 * 28)
        return Qwen25Vision(
            mean=colours(described, "image_mean", MEAN),
            std=colours(described, "image_std", STD),
            patch_size=int(tower.patch_size),
            merge_size=int(tower.spatial_merge_size),
            temporal_patch_size=int(tower.temporal_patch_size),
            least_pixels=least,
            most_pixels=most,
            video_token_id=int(config.video_token_id),
        )

    def prompts(self, config: Any, tokenizer: Any) -> Qwen25Prompts:
        tower = config.vision_config
        return Qwen25Prompts(
            chat=checked_chat(config, tokenizer, CHAT_TEMPLATE),
            video_token_id=int(config.video_token_id),
            merge_size=int(tower.spatial_merge_size),
            tokens_per_second=int(tower.tokens_per_second),
            temporal_patch_size=int(tower.temporal_patch_size),
        )
