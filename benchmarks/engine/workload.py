"""The same model and the same samples for everybody who is compared.

Clips of 1 to 16 frames and texts of 16 to 256 tokens, both log-uniform, are made in memory, so that nobody
waits for a decoder. The model has the widths and the vocabulary of SmolVLM2-256M and random weights.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LONGEST = 16
"""Times the shortest, for frames and for text."""
SHORTEST_TEXT = 16
VOCABULARY = 49_280
IMAGE = 64
"""Pixels of a frame's side: at the model's 512 the same vision tower would be all that is measured."""
FRAME_TOKENS = 4
MODEL_FOLDER, SAMPLES_FILE = "model", "samples.json"
BATCH = 8
"""Samples that those take together who do not count tokens."""
DATA_SET = 1024
"""Samples that length grouping chooses from."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sample: a prompt that shows so many frames, and the answer."""

    prompt: list[int]
    answer: list[int]
    frames: int

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def pixels(self) -> "torch.Tensor":
        """uint8 noise [frames, 3, side, side], always the same."""
        import torch

        generator = torch.Generator().manual_seed(self.length)
        return torch.randint(0, 256, (self.frames, 3, IMAGE, IMAGE), generator=generator, dtype=torch.uint8)


def make_model(folder: Path, layers: int) -> None:
    """SmolVLM2-256M's shape; it has 30 layers of text and 12 of vision."""
    from qlora_engine.models.tiny_random import smolvlm_of, smolvlm_tokenizer, write_smolvlm

    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": layers,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
    }
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": max(1, layers * 12 // 30),
        "num_attention_heads": 12,
        "image_size": IMAGE,
        "patch_size": 16,
    }
    tokenizer = smolvlm_tokenizer()
    config = smolvlm_of(tokenizer, text, vision, scale_factor=2, tie_word_embeddings=True)
    write_smolvlm(folder / MODEL_FOLDER, tokenizer, config)


def make_samples(folder: Path, count: int) -> list[Drawn]:
    """Write and return `count` samples, always the same."""
    found = _drawn(count)
    _write(folder, found)
    return found


def make_grouped_samples(folder: Path, batches: int) -> list[Drawn]:
    """So many batches of the order that transformers' length grouping gives a large data set.

    A small one it hardly groups, which would flatter whoever does without it. The batches are spread evenly
    over all lengths; the first is a middling one, to warm up with.
    """
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    found = _drawn(DATA_SET)
    generator = torch.Generator().manual_seed(0)
    order = get_length_grouped_indices([each.length for each in found], BATCH, generator=generator)
    grouped = [
        [found[place] for place in order[start : start + BATCH]] for start in range(0, DATA_SET, BATCH)
    ]
    grouped.sort(key=lambda batch: sum(each.length for each in batch))
    first = grouped.pop(len(grouped) // 2)
    spread = [grouped[(2 * number + 1) * len(grouped) // (2 * batches)] for number in range(batches)]
    random.Random(0).shuffle(spread)
    chosen = [each for batch in [first, *spread] for each in batch]
    _write(folder, chosen)
    return chosen


def _drawn(count: int) -> list[Drawn]:
    from qlora_engine.models.families import smolvlm
    from qlora_engine.models.tiny_random import smolvlm_tokenizer

    tokenizer = smolvlm_tokenizer()
    fake, image, whole = (
        tokenizer.convert_tokens_to_ids(token) for token in (smolvlm.FAKE, smolvlm.IMAGE, smolvlm.GLOBAL)
    )
    draw = random.Random(0)
    found = []
    for _ in range(count):
        frames = round(LONGEST ** draw.random())
        text = round(SHORTEST_TEXT * LONGEST ** draw.random())
        words = [draw.randrange(len(tokenizer), VOCABULARY) for _ in range(text)]
        shown = [fake, whole, *[image] * FRAME_TOKENS, fake] * frames
        found.append(Drawn(shown + words[: text // 2], words[text // 2 :], frames))
    return found


def _write(folder: Path, drawn: Sequence[Drawn]) -> None:
    described = [{"prompt": each.prompt, "answer": each.answer, "frames": each.frames} for each in drawn]
    (folder / SAMPLES_FILE).write_text(json.dumps(described), "utf-8")


def read_samples(folder: Path) -> list[Drawn]:
    """What `make_samples` wrote."""
    described: list[dict[str, Any]] = json.loads((folder / SAMPLES_FILE).read_text("utf-8"))
    return [Drawn(**each) for each in described]
