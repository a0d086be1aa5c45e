"""One training in a process of its own: `python -m benchmarks.engine.speed_runs NAME FOLDER`.

Every one takes each sample of the folder once, with the same NF4 base, LoRA and AdamW. ``kinora`` is the
engine's loop; ``plain`` is the loop that the documentation of transformers, peft and bitsandbytes leads to;
``trl`` is SFTTrainer. The last two group samples by length. Prints seconds and unpadded tokens of every step
but the first, which warms up, and the process's peak memory, as one JSON object.
"""

import json
import resource
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.engine.workload import MODEL_FOLDER, Drawn, read_samples

RANK, ALPHA, LEARNING_RATE = 8, 16.0, 1e-4
BATCH = 8
Timed = tuple[list[float], list[int]]


def train_with_kinora(folder: Path) -> Timed:
    from benchmarks.engine.ours import Drawer, load, rows, sample_of
    from qlora_engine.adapters.injection import inject
    from qlora_engine.adapters.parameter_groups import parameter_groups
    from qlora_engine.adapters.ranks.resize import Resizing
    from qlora_engine.data.batches import Cursor, StepsOfTokens, planned
    from qlora_engine.stopping import StopWish
    from qlora_engine.training.checkpoints import Checkpoints, Identity, TrainingState
    from qlora_engine.training.evaluation import Evaluator
    from qlora_engine.training.export import Exporter
    from qlora_engine.training.forward import Runner
    from qlora_engine.training.keepsakes import Keepsakes
    from qlora_engine.training.loop import Loop
    from qlora_engine.training.optimizers import make_optimizer
    from qlora_engine.training.schedule import learning_rate_factor
    from qlora_engine.updates import StepTaken
    from schemas.training import Hyperparameters

    drawn = read_samples(folder)
    budget = BATCH * sum(each.length for each in drawn) // len(drawn)  # as much as others take on average
    hyperparameters = Hyperparameters(
        rank=RANK, alpha=ALPHA, learning_rate=LEARNING_RATE, schedule="constant", warmup_ratio=0.0,
        tokens_per_micro_batch=budget, tokens_per_step=budget, max_steps=1, held_out_fraction=0.0,
        checkpoint_every_steps=10_000_000,
    )  # fmt: skip
    loaded = load(folder)
    collator = Drawer(
        loaded.prompts, None, loaded.context_tokens,  # type: ignore[arg-type]
        drawn=tuple(sample_of(each, loaded) for each in drawn),
    )  # fmt: skip
    plan = planned(hyperparameters, [each.length for each in drawn])
    assert isinstance(plan, StepsOfTokens)
    steps = len(plan.rows(0))
    injected = inject(loaded, hyperparameters)
    optimizer = make_optimizer(parameter_groups(injected, hyperparameters), hyperparameters, loaded.device)
    scheduler = torch_schedule(optimizer, learning_rate_factor(hyperparameters, steps))
    runner = Runner(injected.model, loaded)
    series, keepsakes = folder / "series.jsonl", Keepsakes(len(drawn))
    exporter = Exporter(loaded, injected, hyperparameters, "0" * 64)
    identity = Identity(hyperparameters, "0" * 64, "0" * 64)
    ends, tokens = [], []

    def emit(update: object) -> None:
        if isinstance(update, StepTaken):
            ends.append(time.perf_counter())
            tokens.append(update.point.tokens)

    Loop(
        runner=runner, injected=injected, collator=collator, examples=rows(len(drawn)), plan=plan,
        hyperparameters=hyperparameters, optimizer=optimizer, scheduler=scheduler,
        evaluator=Evaluator(runner, collator, (), BATCH, 1),
        checkpoints=Checkpoints(
            folder, injected, optimizer, scheduler, exporter, series, identity, keepsakes,
            Resizing(injected.model, optimizer, hyperparameters, injected.alphas),
        ),
        keepsakes=keepsakes, ranks=None, steps=steps,
        state=TrainingState(0, Cursor(), None, None, 0.0), emit=emit, stop=StopWish(), series=series,
    ).run()  # fmt: skip
    return [after - before for before, after in pairwise(ends)], tokens[1:]


def torch_schedule(optimizer: Any, factor: Any) -> Any:
    import torch

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def plain_model(folder: Path) -> Any:
    """What users of the three libraries write."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig, SmolVLMForConditionalGeneration

    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration.from_pretrained(
        folder / MODEL_FOLDER,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    model.requires_grad_(False)
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


def train_plainly(folder: Path) -> Timed:
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    drawn, model = read_samples(folder), plain_model(folder)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    order = get_length_grouped_indices([each.length for each in drawn], BATCH)
    model.train()
    ends, tokens = [], []
    for start in range(0, len(order), BATCH):
        taken = [drawn[place] for place in order[start : start + BATCH]]
        loss = model(**padded_batch(taken), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        ends.append(time.perf_counter())
        tokens.append(sum(each.length for each in taken))
    return [after - before for before, after in pairwise(ends)], tokens[1:]


def train_with_trl(folder: Path) -> Timed:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    drawn = read_samples(folder)
    ends: list[float] = []
    tokens: list[int] = []

    def collate(taken: Sequence[dict[str, Any]]) -> dict[str, Any]:
        chosen = [drawn[each["place"]] for each in taken]
        tokens.append(sum(each.length for each in chosen))
        return padded_batch(chosen)

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    lengths = [each.length for each in drawn]
    config = SFTConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=BATCH, num_train_epochs=1,
        learning_rate=LEARNING_RATE, weight_decay=0.0, lr_scheduler_type="constant", optim="adamw_torch",
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], logging_strategy="no",
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False, max_length=None,
        train_sampling_strategy="group_by_length", length_column_name="length",
        dataset_kwargs={"skip_prepare_dataset": True}, dataloader_pin_memory=False,
    )  # fmt: skip
    SFTTrainer(
        model=plain_model(folder),
        args=config,
        train_dataset=Dataset.from_dict({"place": list(range(len(drawn))), "length": lengths}),
        data_collator=collate,
        processing_class=AutoTokenizer.from_pretrained(folder / MODEL_FOLDER),
        callbacks=[Clock()],
    ).train()
    return [after - before for before, after in pairwise(ends)], tokens[1 : len(ends)]


RUNS = {"kinora": train_with_kinora, "plain": train_plainly, "trl": train_with_trl}


def main() -> None:
    seconds, tokens = RUNS[sys.argv[1]](Path(sys.argv[2]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    print(json.dumps({"seconds": sum(seconds), "tokens": sum(tokens), "peak_bytes": peak}))


if __name__ == "__main__":
    main()
