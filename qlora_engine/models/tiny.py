"""A tiny SmolVLM, pre-trained here on captioned stills: a real training on two CPU cores, with no download.

It knows colours, shapes and places; it has never seen anything move. Byte-level BPE encodes any text.
Run: ``python -m qlora_engine.models.tiny FOLDER [--seed 0] [--order-blind | --family qwen3_vl]``; with a
family, the model is of that one, and its weights are random (`tiny_random`).
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from transformers import SmolVLMForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from qlora_engine.data import shapes
from qlora_engine.device import one_thread
from qlora_engine.models.families import smolvlm
from qlora_engine.models.families.base import Moments, Shown, exchange
from qlora_engine.models.tiny_random import (
    IMAGE_SIZE,
    RECIPES,
    TEXT,
    make_random_model,
    smolvlm_config,
    smolvlm_tokenizer,
    write_preprocessor,
)
from qlora_engine.models.tiny_tokenizer import PLACES, STILL_PROMPT

PRETRAINING_STEPS = 400
ORDER_BLIND_STEPS = 250
"""It learns faster."""
BATCH = 32
LEARNING_RATE = 3e-3
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% endif %}"
    "{% if part['type'] == 'text' %}{{ ' ' + part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Frames as a row of pictures: the wordy prompt of the large checkpoints is too much for two layers."""
ORDER_BLIND = {
    **TEXT,
    "num_hidden_layers": 1,
    "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 1e12},
}
"""A language model for which a clip is a set of pictures: the next token follows from the last one and from
all before it, in whatever order. Its one layer of attention reads embeddings, which know nothing of their
neighbours, at positions so close together that 32 bits see none. No adapter on its linear layers changes
that. Stock transformers load it like any other.
"""


def make_tokenizer() -> Any:
    """Byte-level BPE whose merges come from the captions that the sample data use."""
    tokenizer = smolvlm_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _still(rng: random.Random) -> tuple[torch.Tensor, str]:
    figure = shapes.random_figure(rng)
    x, y = rng.uniform(15, 49), rng.uniform(15, 49)
    row, column = (min(2, int((place - 15) / 34 * 3)) for place in (y, x))
    caption = f"a {figure.colour} {figure.shape} sits {PLACES[row][column]}"
    return torch.from_numpy(shapes.draw(figure, x, y)), caption


def _batch(prompts: Any, still: Shown, rng: random.Random) -> dict[str, torch.Tensor]:
    stills = [_still(rng) for _ in range(BATCH)]
    pictures = torch.stack([picture for picture, _ in stills]).permute(0, 3, 1, 2).float()
    pixels = functional.avg_pool2d(pictures, shapes.SIDE // IMAGE_SIZE) / 127.5 - 1
    encoded = [prompts.encode(exchange(STILL_PROMPT, caption), still) for _, caption in stills]
    ids = torch.full((BATCH, max(len(each.ids) for each in encoded)), prompts.pad_token_id)
    labels = torch.full_like(ids, -100)
    for row, each in enumerate(encoded):
        given = torch.tensor(each.ids)
        ids[row, : len(given)] = given
        labels[row, : len(given)] = given.masked_fill(~torch.tensor(each.supervised), -100)
    return {"input_ids": ids, "labels": labels, "pixel_values": pixels[:, None]}


def _pretrain(
    model: Any, prompts: Any, still: Shown, rng: random.Random, steps: int, progress: shapes.Progress | None
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        loss = model(**_batch(prompts, still, rng), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if progress is not None:
            progress(f"pre-training on stills (loss {float(loss.detach()):.3f})", step + 1, steps)
    model.eval()


def make_tiny_model(
    folder: Path | str,
    progress: shapes.Progress | None = None,
    seed: int = 0,
    steps: int | None = None,
    *,
    order_blind: bool = False,
) -> Path:
    """Write a Hugging Face checkpoint folder of a tiny SmolVLM; the caller's random state is left alone.

    Args:
        steps: of the pre-training.
        order_blind: make one that cannot know the order of frames, nor learn it from ordinary LoRA.
    """
    steps = steps or (ORDER_BLIND_STEPS if order_blind else PRETRAINING_STEPS)
    text = ORDER_BLIND if order_blind else TEXT
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    write_preprocessor(folder, "smolvlm")
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmolVLMForConditionalGeneration(smolvlm_config(tokenizer, text))
        family = smolvlm.SmolVLM()
        prompts = family.prompts(model.config, tokenizer)
        layout = family.vision(model.config, folder).layout(IMAGE_SIZE, IMAGE_SIZE, 1)
        still = Shown(layout, Moments(seconds=(0.0,), duration=0.0))
        _pretrain(model, prompts, still, random.Random(seed), steps, progress)  # noqa: S311 - no secrets
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m qlora_engine.models.tiny", description="Make a tiny base model."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--order-blind", action="store_true", help="one that cannot know the order of frames")
    kind.add_argument(
        "--family", choices=sorted(RECIPES), help="random weights instead of the pre-trained SmolVLM"
    )
    arguments = parser.parse_args()
    disable_progress_bar()
    with shapes.writing_to(arguments.folder):
        if arguments.family is None:
            make_tiny_model(
                arguments.folder, shapes.print_progress, arguments.seed, order_blind=arguments.order_blind
            )
        else:
            make_random_model(arguments.folder, arguments.family, arguments.seed)


if __name__ == "__main__":
    main()
