"""One training in a process of its own: `python -m benchmarks.training_loops (kinora|plain) FOLDER STEPS`.

Both train the same NF4 base with the same LoRA on the same clips in batches of the same size with the same
optimizer; ``plain`` is the loop that the documentation of transformers, peft and bitsandbytes leads to,
written here with nothing of ours. Prints the seconds of each step, the losses and the process's peak memory
as one JSON object.
"""

import json
import random
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

RANK, ALPHA, LEARNING_RATE = 8, 16.0, 1e-3
BATCH, FRAMES, IMAGE = 8, 4, 128
PROMPT_FRAME = "<fake_token_around_image><global-img>{image}<fake_token_around_image>"


def make_model(folder: Path) -> None:
    """A SmolVLM of 25 million random parameters: large enough that its arithmetic is what takes the time."""
    import torch
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    from qlora_engine.models.families import smolvlm
    from qlora_engine.models.tiny import make_tokenizer
    from qlora_engine.models.tiny_random import write_preprocessor

    tokenizer = make_tokenizer()
    text = LlamaConfig(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = SmolVLMVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE,
        patch_size=16,
    )
    config = SmolVLMConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(smolvlm.IMAGE),
        scale_factor=4,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_preprocessor(folder, "smolvlm")


def make_manifest(folder: Path, file: Path) -> None:
    """The clips as the engine takes them: validated by the engine itself."""
    from qlora_engine.data.validation import validate_dataset
    from schemas.training import DatasetValidationSpec

    verdict = validate_dataset(
        DatasetValidationSpec(dataset_folder=str(folder), output_folder=str(file.parent)), lambda _: None
    )
    assert not verdict.problems, verdict.problems


def train_with_kinora(folder: Path, steps: int) -> tuple[list[float], list[float]]:
    """The engine's own entry point; a step lasts from one report to the next."""
    from qlora_engine.stopping import StopWish
    from qlora_engine.training.attempt import train
    from qlora_engine.updates import StepTaken
    from schemas.training import Hyperparameters, TrainingSpec

    hyperparameters = Hyperparameters(
        rank=RANK,
        alpha=ALPHA,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup_ratio=0.0,
        batch_size=BATCH,
        max_steps=steps,
        frames=FRAMES,
        held_out_fraction=0.0,
        checkpoint_every_steps=10_000,
    )
    spec = TrainingSpec(
        job_id="job_" + "0" * 32,
        attempt=1,
        hyperparameters=hyperparameters,
        model_folder=str(folder / "model"),
        dataset_folder=str(folder / "clips"),
        manifest_file=str(folder / "manifest.json"),
        output_folder=str(folder / "output"),
    )
    times, losses = [], []

    def emit(update: object) -> None:
        if isinstance(update, StepTaken):
            times.append(time.perf_counter())
            losses.append(update.point.loss)

    train(spec, emit, StopWish())
    return [after - before for before, after in pairwise(times)], losses


def train_plainly(folder: Path, steps: int) -> tuple[list[float], list[float]]:
    """What a careful user of the three libraries writes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, BitsAndBytesConfig, SmolVLMForConditionalGeneration

    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration.from_pretrained(
        folder / "model",
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    model.requires_grad_(False)
    quantized = [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=quantized))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=LEARNING_RATE,
        weight_decay=0.0,
    )
    rows = [json.loads(line) for line in (folder / "clips" / "captions.jsonl").read_text().splitlines()]
    order = random.Random(0)
    kept: dict[str, torch.Tensor] = {}
    model.train()
    times, losses = [time.perf_counter()], []
    for _ in range(steps):
        batch = _plain_batch(order.sample(rows, BATCH), folder / "clips", tokenizer, kept)
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        times.append(time.perf_counter())
    return [after - before for before, after in pairwise(times[1:])], losses


def _plain_batch(rows: list[Any], clips: Path, tokenizer: Any, kept: dict[str, Any]) -> dict[str, Any]:
    import torch

    frame = PROMPT_FRAME.format(image="<image>" * 4)
    ids, labels = [], []
    for row in rows:
        prompt = tokenizer(f"<|im_start|>User:{frame * FRAMES} {row['prompt']}<end_of_utterance>\nAssistant:")
        answer = tokenizer(f" {row['response']}<end_of_utterance>")
        ids.append(prompt["input_ids"] + answer["input_ids"])
        labels.append([-100] * len(prompt["input_ids"]) + answer["input_ids"])
        if row["video"] not in kept:
            kept[row["video"]] = _frames(clips / row["video"])
    width = max(map(len, ids))
    pad = tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
        "pixel_values": torch.stack([kept[row["video"]] for row in rows]),
    }


def _frames(file: Path) -> Any:
    import av
    import torch

    with av.open(str(file)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    chosen = [pictures[round(number * (len(pictures) - 1) / (FRAMES - 1))] for number in range(FRAMES)]
    pixels = torch.stack([torch.from_numpy(picture) for picture in chosen]).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(pixels, (IMAGE, IMAGE), mode="bicubic", antialias=True)
    return resized.clamp(0, 255) / 127.5 - 1


def main() -> None:
    which, folder, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    seconds, losses = (train_with_kinora if which == "kinora" else train_plainly)(folder, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    print(json.dumps({"seconds": seconds, "losses": losses, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
