"""A SmolVLM that cannot know the order of frames, and the clips that show what that costs.

Every frame's features are replaced by the mean over the clip's frames, as towers do that pool a clip:
whatever an ordinary adapter learns, a clip and its reverse get the same answer. It is a transformers model
like any other, pre-trained here on stills and clips, so that it knows colours, shapes and the axis of a
movement.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from transformers import SmolVLMForConditionalGeneration
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMModel

from qlora_engine.data import shapes
from qlora_engine.data.collate import Batch, Collator, padded
from qlora_engine.data.frames import ClipFrames
from qlora_engine.models.families.base import Moments
from qlora_engine.models.families.smolvlm import SmolVLM, SmolVLMVision
from qlora_engine.models.tiny import make_tokenizer
from qlora_engine.models.tiny_random import IMAGE_SIZE, smolvlm_config, write_preprocessor
from qlora_engine.models.tiny_tokenizer import PLACES, STILL_PROMPT
from schemas.datasets import Example, one_turn

FRAMES = 4
CONTEXT = 2048
BATCH = 32
STILLS, PAIRS = 1600, 400
STILLS_ALONE = 0.5
"""Share of the pre-training."""
LEARNING_RATE = 3e-3


class OrderBlindModel(SmolVLMModel):  # type: ignore[misc]
    """Shows the language model the mean of a clip's frames, as often as there are frames."""

    def get_image_features(self, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = super().get_image_features(pixel_values, *args, **kwargs)
        frames = pixel_values.shape[1]
        found.pooler_output = [self._pooled(features, frames) for features in found.pooler_output]
        return found

    @staticmethod
    def _pooled(features: torch.Tensor, frames: int) -> torch.Tensor:
        by_frame = features.view(frames, -1, features.shape[-1])
        # In 64 bits, so that the order of the sum leaves no trace in 32.
        mean = by_frame.double().mean(dim=0, keepdim=True).to(features.dtype)
        return mean.expand_as(by_frame).reshape(features.shape)


class OrderBlindSmolVLM(SmolVLMForConditionalGeneration):  # type: ignore[misc]
    """SmolVLM around it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = OrderBlindModel(config)
        self.post_init()


class OrderBlind(SmolVLM):
    """The family, for the engine."""

    def model_class(self, model_type: str) -> Any:
        return OrderBlindSmolVLM


@dataclass
class Drawings:
    """Clips in memory; a `ClipSource`."""

    clips: dict[str, ClipFrames] = field(default_factory=dict)

    def of(self, clip: str) -> ClipFrames:
        return self.clips[clip]

    def ahead(self, clips: Iterable[str]) -> None:
        """Nothing is left to do."""

    def add(self, pictures: Sequence[Any], prompt: str, response: str) -> Example:
        """One more clip, and what is asked and said about it."""
        frames = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]).float()
        small = functional.avg_pool2d(frames, shapes.SIDE // IMAGE_SIZE).round().to(torch.uint8)
        name = f"{len(self.clips)}.mp4"
        moments = Moments(tuple(float(index) for index in range(len(small))), float(len(small)))
        self.clips[name] = ClipFrames(small, moments, VISION.layout(shapes.SIDE, shapes.SIDE, len(small)))
        return Example(clip=name, messages=one_turn(prompt, response), row=len(self.clips))

    def pair(self, rng: random.Random, direction: str) -> tuple[Example, Example]:
        """A clip and its exact reverse, which shows the opposite movement."""
        figure = shapes.random_figure(rng)
        pictures = shapes.moving(figure, direction, rng)
        shown = [pictures[index * (len(pictures) - 1) // (FRAMES - 1)] for index in range(FRAMES)]
        there, back = (
            self.add(seen, shapes.PROMPT, f"a {figure.colour} {figure.shape} moves {way}")
            for seen, way in ((shown, direction), (shown[::-1], shapes.OPPOSITE[direction]))
        )
        return there, back

    def still(self, rng: random.Random) -> Example:
        """One picture and where it stands."""
        figure = shapes.random_figure(rng)
        x, y = rng.uniform(15, 49), rng.uniform(15, 49)
        row, column = (min(2, int((place - 15) / 34 * 3)) for place in (y, x))
        told = f"a {figure.colour} {figure.shape} sits {PLACES[row][column]}"
        return self.add([shapes.draw(figure, x, y)], STILL_PROMPT, told)


VISION = SmolVLMVision((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), IMAGE_SIZE, 8, 4)


def pairs(drawings: Drawings, rng: random.Random, count: int) -> list[tuple[Example, Example]]:
    """`count` pairs whose directions take turns."""
    ways = tuple(shapes.OPPOSITE)
    return [drawings.pair(rng, ways[index % len(ways)]) for index in range(count)]


def make_order_blind(folder: Path, steps: int, seed: int = 0) -> Path:
    """Pre-train the base and write it as a checkpoint folder."""
    rng = random.Random(seed)
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = OrderBlindSmolVLM(smolvlm_config(tokenizer))
    prompts = SmolVLM().prompts(model.config, tokenizer)
    drawings = Drawings()
    collator = Collator(prompts, drawings, CONTEXT)
    stills = [collator.sample(drawings.still(rng)) for _ in range(STILLS)]
    moving = [collator.sample(each) for pair in pairs(drawings, rng, PAIRS) for each in pair]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        # Places first: a clip's caption says less of them, and from both at once they are learnt late.
        of_clips = step % 2 and step > STILLS_ALONE * steps
        chosen = rng.sample(moving if of_clips else stills, BATCH)
        loss_of(model, padded(chosen, prompts.pad_token_id)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_preprocessor(folder, "smolvlm")
    return folder


def loss_of(model: Any, batch: Batch) -> torch.Tensor:
    """The mean loss per supervised token of a dense model."""
    pixels = torch.stack([row[0].pixels for row in batch.clips]).float() / 127.5 - 1
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "pixel_values": pixels}
    seen = model(**inputs, labels=batch.labels, use_cache=False)
    loss: torch.Tensor = seen.loss
    return loss
