"""A tiny SmolVLM, pre-trained here on captioned stills: a real training on two CPU cores, with no download.

It knows colours, shapes and places; it has never seen anything move. Byte-level BPE encodes any text.
Run: ``python -m qlora_engine.models.tiny FOLDER [--seed 0]``
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.utils.logging import disable_progress_bar

from qlora_engine.data import shapes
from qlora_engine.device import one_thread
from qlora_engine.models.families import smolvlm
from qlora_engine.models.families.base import Moments, Shown, exchange

PRETRAINING_STEPS = 400
BATCH = 32
LEARNING_RATE = 3e-3
IMAGE_SIZE = 32
STILL_PROMPT = "What is in the picture?"
PLACES = (("up left", "up", "up right"), ("left", "middle", "right"), ("down left", "down", "down right"))
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% endif %}"
    "{% if part['type'] == 'text' %}{{ ' ' + part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Frames as a row of pictures: the wordy prompt of the large checkpoints is too much for two layers."""
UNKNOWN = "<|endoftext|>"
PAD = "<|im_end|>"


def make_tokenizer() -> Any:
    """Byte-level BPE whose merges come from the captions that the sample data use."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        UNKNOWN,
        smolvlm.START,
        PAD,
        smolvlm.FAKE,
        smolvlm.IMAGE,
        smolvlm.GLOBAL,
        smolvlm.VIDEO,
        smolvlm.END,
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_lines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=smolvlm.START,
        eos_token=smolvlm.END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[smolvlm.FAKE, smolvlm.IMAGE, smolvlm.GLOBAL, smolvlm.VIDEO],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def _tokenizer_lines() -> Iterator[str]:
    yield "User: You are provided the following series of one two three four five six seven frames from a"
    yield " 0:00:02 [H:MM:SS] video.\n\nFrame from 00:01:\n\n"
    for _ in range(2):  # merges want to be seen twice
        yield f"User: {STILL_PROMPT} {shapes.PROMPT}\nAssistant:"
        yield " Describe the video. What is shown? Which way does it go?"
    for colour in shapes.COLOURS:
        for shape in shapes.SHAPES:
            for row in PLACES:
                yield from (f" a {colour} {shape} sits {place}" for place in row)
            yield from (f" a {colour} {shape} moves {direction}" for direction in shapes.DIRECTIONS)
    for _ in range(2):
        yield " the a an of in on at to from and is are not with it its this that man woman person dog cat"
        yield " ball car hand walks runs turns opens closes picks puts slowly quickly around into out over"


def make_config(tokenizer: Any) -> Any:
    """About 400 thousand parameters; widths are multiples of 64, as the 4-bit kernels want."""
    text = LlamaConfig(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.1,  # 1/sqrt(64): with the usual 0.02 a model this narrow learns nothing
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = SmolVLMVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
        initializer_range=0.1,
    )
    return SmolVLMConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(smolvlm.IMAGE),
        scale_factor=4,  # one token per frame
        initializer_range=0.1,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )


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
    steps: int = PRETRAINING_STEPS,
) -> Path:
    """Write a Hugging Face checkpoint folder of a tiny SmolVLM; the caller's random state is left alone."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmolVLMForConditionalGeneration(make_config(tokenizer))
        family = smolvlm.SmolVLM()
        prompts = family.prompts(model.config, tokenizer)
        layout = family.vision(model.config, folder).layout(IMAGE_SIZE, IMAGE_SIZE, 1)
        still = Shown(layout, Moments(seconds=(0.0,), duration=0.0))
        _pretrain(model, prompts, still, random.Random(seed), steps, progress)  # noqa: S311 - no secrets
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"longest_edge": IMAGE_SIZE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels, indent=2) + "\n", "utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m qlora_engine.models.tiny", description="Make a tiny base model."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    disable_progress_bar()
    with shapes.writing_to(arguments.folder):
        make_tiny_model(arguments.folder, shapes.print_progress, arguments.seed)


if __name__ == "__main__":
    main()
