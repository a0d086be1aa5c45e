"""One training of a text model in a process of its own: `python -m benchmarks.engine.gpu_runs NAME FOLDER`.

The device is CUDA where there is one. All train LoRA of rank 16 on every linear layer of the same NF4 base
with AdamW, on the same samples, each taken once; the loss is that of the answers:

- ``kinora`` is the engine's loop, in packed rows; ``kinora_checkpointed`` computes activations twice;
- ``plain_checkpointed`` is what the documentation of transformers, peft and bitsandbytes leads to: padded
  batches grouped by length, `prepare_model_for_kbit_training`, bfloat16 autocast, the model's own loss;
- ``plain`` is that without checkpointing.

Prints a `Run` as JSON. ``make`` writes model and samples.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.engine.speed_runs import Course, Run, counted
from benchmarks.engine.workload import MODEL_FOLDER, Drawn, make_grouped_texts, read_samples
from qlora_engine.device import best_device

RANK, ALPHA, LEARNING_RATE = 16, 32.0, 1e-4


@dataclass(frozen=True)
class Size:
    """Of the model and of what it is trained on."""

    model: dict[str, Any]
    shortest: int
    """Tokens of a sample; the longest has sixteen times as many."""
    batch: int
    """Samples that are padded to one width."""
    batches: int
    row: int
    """Tokens of a packed row; about as many as a batch has."""

    @property
    def config(self) -> Qwen2Config:
        return Qwen2Config(**self.model, tie_word_embeddings=False)

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with: all but the embedding, which is only looked up."""
        with torch.device("meta"):
            model = Qwen2ForCausalLM(self.config)
        whole = sum(parameter.numel() for parameter in model.parameters())
        return int(whole - model.get_input_embeddings().weight.numel())


QWEN_7B = Size(
    {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
    },
    shortest=256, batch=6, batches=12, row=8192,
)  # fmt: skip
SMALL = Size(
    {
        "vocab_size": 1024,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    },
    shortest=16, batch=4, batches=2, row=384,
)  # fmt: skip
"""To see on any machine that everything runs; its figures say nothing."""


def size_for(device: torch.device) -> Size:
    return QWEN_7B if device.type == "cuda" else SMALL


def make(folder: Path, device: torch.device) -> None:
    """Write the model in bfloat16 (the large one has 15 GB), and the samples."""
    from qlora_engine.models.tiny_random import RECIPES

    size = size_for(device)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = Qwen2ForCausalLM(size.config)
    model.save_pretrained(folder / MODEL_FOLDER, max_shard_size="4GB")
    RECIPES["qwen2"].tokenizer().save_pretrained(folder / MODEL_FOLDER)
    make_grouped_texts(folder, size.shortest, size.model["vocab_size"], size.batch, size.batches)


def train_with_kinora(folder: Path, device: torch.device, *, checkpointed: bool) -> Course:
    from benchmarks.engine.ours import load, sample_of, train
    from schemas.training import Hyperparameters

    row = size_for(device).row
    hyperparameters = Hyperparameters(
        rank=RANK, alpha=ALPHA, learning_rate=LEARNING_RATE, schedule="constant", warmup_ratio=0.0,
        tokens_per_micro_batch=row, tokens_per_step=row, max_steps=1, held_out_fraction=0.0,
        checkpoint_every_steps=10_000_000, gradient_checkpointing=checkpointed,
    )  # fmt: skip
    loaded, course = load(folder, device), Course()
    samples = [sample_of(each, loaded) for each in read_samples(folder)]
    course.parameters = train(loaded, samples, hyperparameters, folder, partial(_passed, course, device))
    return course


def train_plainly(folder: Path, device: torch.device, *, checkpointed: bool) -> Course:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder / MODEL_FOLDER, dtype=dtype, quantization_config=quantization, device_map={"": device}
    )
    model = prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=checkpointed, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    course = Course(sum(parameter.numel() for parameter in trained))
    drawn, batch = read_samples(folder), size_for(device).batch
    model.train()
    for start in range(0, len(drawn), batch):
        taken = drawn[start : start + batch]
        given = {name: tensor.to(device) for name, tensor in _padded(taken).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(**given, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _passed(course, device, *counted(taken), loss.item())
    return course


def _padded(drawn: Sequence[Drawn]) -> dict[str, torch.Tensor]:
    width = max(each.length for each in drawn)
    ids = torch.zeros((len(drawn), width), dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for number, each in enumerate(drawn):
        ids[number, : each.length] = torch.tensor(each.prompt + each.answer)
        mask[number, : each.length] = 1
        labels[number, len(each.prompt) : each.length] = torch.tensor(each.answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _passed(course: Course, device: torch.device, tokens: int, supervised: int, loss: float) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    course.passed(tokens, supervised, loss)


RUNS = {
    "kinora": partial(train_with_kinora, checkpointed=False),
    "kinora_checkpointed": partial(train_with_kinora, checkpointed=True),
    "plain": partial(train_plainly, checkpointed=False),
    "plain_checkpointed": partial(train_plainly, checkpointed=True),
}


def main() -> None:
    name, folder, device = sys.argv[1], Path(sys.argv[2]), best_device()
    if name == "make":
        make(folder, device)
        return
    run = asdict(Run.of(RUNS[name](folder, device)))
    if device.type == "cuda":
        run["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    print(json.dumps(run))


if __name__ == "__main__":
    main()
