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
    """Write and return so many batches of clips and texts, and one before them; see `grouped`."""
    chosen = grouped(_drawn(DATA_SET), BATCH, batches)
    _write(folder, chosen)
    return chosen


def make_grouped_texts(folder: Path, shortest: int, vocabulary: int, batch: int, batches: int) -> list[Drawn]:
    """The same without clips: half prompt, half answer."""
    draw, found = random.Random(0), []
    for _ in range(DATA_SET):
        words = [draw.randrange(vocabulary) for _ in range(round(shortest * LONGEST ** draw.random()))]
        found.append(Drawn(words[: len(words) // 2], words[len(words) // 2 :], 0))
    chosen = grouped(found, batch, batches)
    _write(folder, chosen)
    return chosen


def grouped(found: Sequence[Drawn], batch: int, batches: int) -> list[Drawn]:
    """Some batches of the order that transformers' length grouping gives a large data set.

    A small one it hardly groups, which would flatter whoever does without it. The batches are spread evenly
    over all lengths; before them comes a middling one, to warm up with.
    """
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    generator = torch.Generator().manual_seed(0)
    order = get_length_grouped_indices([each.length for each in found], batch, generator=generator)
    whole = range(0, len(found) - batch + 1, batch)
    groups = [[found[place] for place in order[start : start + batch]] for start in whole]
    groups.sort(key=lambda group: sum(each.length for each in group))
    first = groups.pop(len(groups) // 2)
    spread = [groups[(2 * number + 1) * len(groups) // (2 * batches)] for number in range(batches)]
    random.Random(0).shuffle(spread)
    return [each for group in [first, *spread] for each in group]


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
