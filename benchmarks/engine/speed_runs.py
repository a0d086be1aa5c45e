"""One training in a process of its own: `python -m benchmarks.engine.speed_runs NAME FOLDER`.

All take each sample of the folder once, float32 on the CPU, with the same NF4 base, LoRA of rank 8 on every
quantised layer, AdamW at a constant rate, gradients clipped at 1, loss on the answers:

- ``kinora`` is the engine's loop as a job runs it, in packed rows of as many tokens as a batch on average;
- ``plain`` is the loop that the documentation of transformers, peft and bitsandbytes leads to, in padded
  batches of eight;
- ``checkpointed`` is the same after peft's `prepare_model_for_kbit_training`, which by default computes
  activations again on the way back: slower, and with less memory;
- ``trl`` is SFTTrainer, in the same batches, without checkpointing.

Batches come in the order that length grouping gave them. Prints one JSON object: seconds, processor seconds
and unpadded tokens of every step but the first, which warms up; tokens, trained parameters and loss per
supervised token of all; and the process's peak memory.

``same FOLDER`` trains nothing: it compares the engine's loss and gradients with the plain loop's.
"""

import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engine.workload import BATCH, MODEL_FOLDER, Drawn, read_samples

RANK, ALPHA, LEARNING_RATE = 8, 16.0, 1e-4


@dataclass
class Course:
    """What a training went through, step by step."""

    parameters: int = 0
    """Trained."""
    ends: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    """Processor seconds of the process at the end of each step."""
    tokens: list[int] = field(default_factory=list)
    loss: float = 0.0
    """Sum over the supervised tokens of all steps."""
    supervised: int = 0

    def passed(self, tokens: int, supervised: int, mean_loss: float) -> None:
        self.ends.append(time.perf_counter())
        self.busy.append(time.process_time())
        self.tokens.append(tokens)
        self.loss += mean_loss * supervised
        self.supervised += supervised


@dataclass(frozen=True, slots=True)
class Run:
    """What is told of it."""

    seconds: float
    processor_seconds: float
    timed_tokens: int
    tokens: int
    parameters: int
    loss: float
    peak_bytes: int

    @classmethod
    def of(cls, course: Course) -> "Run":
        return cls(
            seconds=course.ends[-1] - course.ends[0],
            processor_seconds=course.busy[-1] - course.busy[0],
            timed_tokens=sum(course.tokens[1:]),
            tokens=sum(course.tokens),
            parameters=course.parameters,
            loss=course.loss / course.supervised,
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts KiB
        )


def train_with_kinora(folder: Path) -> Course:
    from benchmarks.engine.ours import load, sample_of, train
    from schemas.training import Hyperparameters

    drawn = read_samples(folder)
    budget = BATCH * sum(each.length for each in drawn) // len(drawn)  # as much as others take on average
    hyperparameters = Hyperparameters(
        rank=RANK, alpha=ALPHA, learning_rate=LEARNING_RATE, schedule="constant", warmup_ratio=0.0,
        tokens_per_micro_batch=budget, tokens_per_step=budget, max_steps=1, held_out_fraction=0.0,
        checkpoint_every_steps=10_000_000,
    )  # fmt: skip
    loaded = load(folder)
    course = Course()
    course.parameters = train(
        loaded, [sample_of(each, loaded) for each in drawn], hyperparameters, folder, course.passed
    )
    return course


def plain_model(folder: Path, *, checkpointed: bool = False) -> Any:
    """What users of the three libraries write."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig, SmolVLMForConditionalGeneration

    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration.from_pretrained(
        folder / MODEL_FOLDER,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    model = prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=checkpointed,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    quantized = [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=quantized))


def padded_batch(drawn: Sequence[Drawn]) -> dict[str, Any]:
    import torch

    width, frames = max(each.length for each in drawn), max(each.frames for each in drawn)
    ids = torch.zeros((len(drawn), width), dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    pixels = torch.zeros((len(drawn), frames, 3, *drawn[0].pixels.shape[2:]))
    for number, each in enumerate(drawn):
        ids[number, : each.length] = torch.tensor(each.prompt + each.answer)
        mask[number, : each.length] = 1
        labels[number, len(each.prompt) : each.length] = torch.tensor(each.answer)
        pixels[number, : each.frames] = each.pixels / 127.5 - 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": pixels}


def train_plainly(folder: Path, *, checkpointed: bool = False) -> Course:
    import torch

    drawn, model = read_samples(folder), plain_model(folder, checkpointed=checkpointed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    course = Course(sum(parameter.numel() for parameter in trained))
    model.train()
    for start in range(0, len(drawn), BATCH):
        taken = drawn[start : start + BATCH]
        loss = model(**padded_batch(taken), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        course.passed(*counted(taken), loss.item())
    return course


def counted(drawn: Sequence[Drawn]) -> tuple[int, int]:
    """Tokens, and those of them that the loss is computed on."""
    return sum(each.length for each in drawn), sum(len(each.answer) for each in drawn)


def train_checkpointed(folder: Path) -> Course:
    return train_plainly(folder, checkpointed=True)


def train_with_trl(folder: Path) -> Course:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    drawn = read_samples(folder)
    course = Course()

    def collate(taken: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return padded_batch([drawn[each["place"]] for each in taken])

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            last = state.global_step * BATCH
            course.passed(*counted(drawn[last - BATCH : last]), 0.0)

    config = SFTConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=BATCH, num_train_epochs=1,
        learning_rate=LEARNING_RATE, weight_decay=0.0, lr_scheduler_type="constant", optim="adamw_torch",
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], logging_strategy="no",
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False, max_length=None,
        train_sampling_strategy="sequential",  # they are grouped already
        dataset_kwargs={"skip_prepare_dataset": True}, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=plain_model(folder),
        args=config,
        train_dataset=Dataset.from_dict({"place": list(range(len(drawn)))}),
        data_collator=collate,
        processing_class=AutoTokenizer.from_pretrained(folder / MODEL_FOLDER),
        callbacks=[Clock()],
    )
    course.parameters = sum(
        parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad
    )
    mean = trainer.train().training_loss  # over steps, each of which is a mean over its supervised tokens
    course.loss = mean * course.supervised
    return course


def compare(folder: Path) -> dict[str, float]:
    """How far loss and gradient of one batch are from the plain loop's, relative to its own."""
    import torch

    from benchmarks.engine.ours import load, sample_of
    from qlora_engine.adapters.injection import inject
    from qlora_engine.data.collate import packed
    from qlora_engine.training.forward import Runner
    from schemas.training import Hyperparameters

    drawn = read_samples(folder)[:BATCH]
    loaded = load(folder)
    injected = inject(loaded, Hyperparameters(rank=RANK, alpha=ALPHA))
    plain = plain_model(folder)
    ours, theirs = dict(injected.trainable()), dict(plain.named_parameters())
    if ours.keys() != {name for name, parameter in theirs.items() if parameter.requires_grad}:
        raise RuntimeError("not the same parameters are trained")
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))
            theirs[name].copy_(parameter)
    row = packed([sample_of(each, loaded) for each in drawn])
    loss = Runner(injected.model.train(), loaded).loss(row).total / row.supervised
    expected = plain.train()(**padded_batch(drawn), use_cache=False).loss
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()
    gradients = [(parameter.grad, theirs[name].grad) for name, parameter in ours.items()]
    difference = sum(float((found - wanted).square().sum()) for found, wanted in gradients) ** 0.5
    whole = sum(float(wanted.square().sum()) for _, wanted in gradients) ** 0.5
    return {"loss": abs(float(loss.detach() / expected.detach()) - 1), "gradient": difference / whole}


RUNS = {
    "kinora": train_with_kinora,
    "plain": train_plainly,
    "checkpointed": train_checkpointed,
    "trl": train_with_trl,
}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(compare(folder) if name == "same" else asdict(Run.of(RUNS[name](folder)))))


if __name__ == "__main__":
    main()
