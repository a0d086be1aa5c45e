"""Can an adapter learn which way time runs? Ordinary and temporal-aware LoRA on an order-blind NF4 base.

Held-out clips come in pairs of a clip and its reverse. A model that cannot know the order gives both the same
answer, so it is right on one of two at best.
"""

import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.engine.order_blind import CONTEXT, Drawings, OrderBlind, make_order_blind, pairs
from benchmarks.installation import console, scratch
from benchmarks.report import Result
from qlora_engine.adapters.injection import inject
from qlora_engine.adapters.parameter_groups import parameter_groups
from qlora_engine.data.collate import Collator, padded
from qlora_engine.device import one_thread
from qlora_engine.models.loading import load_model
from qlora_engine.training.evaluation import undisturbed
from qlora_engine.training.forward import Runner
from qlora_engine.training.schedule import learning_rate_factor
from schemas.datasets import Example
from schemas.training import Hyperparameters

STEPS, PRETRAINING_STEPS, SEEDS = 160, 400, 3
BATCH = 32
TRAINING_PAIRS, TEST_PAIRS = 640, 64
SECONDS = 90
"""For everything; asked for on two cores that do nothing else."""
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Arm:
    """What one training came to."""

    accuracy: float
    """Share of held-out clips whose direction is told rightly."""
    gap: float
    """How far apart the loss per clip is for a clip and its reverse, told the same: the arrow of time."""
    parameters: int
    seconds: float


def measure(quick: bool = False) -> list[Result]:
    """Run the benchmark; about a minute, or half of that with one seed."""
    began = time.perf_counter()
    seeds = range(1 if quick else SEEDS)
    with (
        scratch() as folder,
        ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as processes,
    ):
        console.print("engine.arrow: pre-training an order-blind base …")
        with one_thread():
            base = make_order_blind(folder / "base", PRETRAINING_STEPS)
        arms = {
            (seed, temporal): processes.submit(_train, base, seed, temporal)
            for seed in seeds
            for temporal in (False, True)
        }
        for (seed, temporal), arm in arms.items():
            name = "temporal" if temporal else "ordinary"
            console.print(f"engine.arrow: seed {seed}, {name} LoRA: {arm.result().accuracy:.3f}")
        plain, tuned = ([arms[seed, temporal].result() for seed in seeds] for temporal in (False, True))
    return _results(plain, tuned, time.perf_counter() - began)


def _train(base: Path, seed: int, temporal: bool) -> Arm:
    began = time.perf_counter()
    rng = random.Random(seed + 1)
    drawings = Drawings()
    held_out = pairs(drawings, rng, TEST_PAIRS)
    chosen = Hyperparameters(
        temporal=temporal, learning_rate=5e-3, warmup_ratio=0.05, max_steps=STEPS, batch_size=BATCH, seed=seed
    )
    loaded = load_model(str(base), CPU, family=OrderBlind())
    injected = inject(loaded, chosen)
    runner = Runner(injected.model, loaded)
    collator = Collator(loaded.prompts, drawings, CONTEXT)
    training = [collator.sample(each) for pair in pairs(drawings, rng, TRAINING_PAIRS) for each in pair]
    optimizer = torch.optim.AdamW(parameter_groups(injected, chosen), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(chosen, STEPS))
    injected.model.train()
    for _ in range(STEPS):
        batch = padded(rng.sample(training, BATCH), loaded.prompts.pad_token_id)
        (runner.loss(batch).total / batch.supervised).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([each for _, each in injected.trainable()], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with undisturbed(injected.model, CPU):
        accuracy, gap = _accuracy(runner, collator, held_out), _gap(runner, collator, held_out)
    return Arm(accuracy, gap, injected.trainable_parameters, time.perf_counter() - began)


def _accuracy(runner: Runner, collator: Collator, held_out: Sequence[tuple[Example, Example]]) -> float:
    clips = [example for pair in held_out for example in pair]
    answers = runner.answers(collator.questions(clips), 8)
    right = [
        answer.split()[-1:] == example.messages[-1].text.split()[-1:]
        for answer, example in zip(answers, clips, strict=True)
    ]
    return sum(right) / len(right)


def _gap(runner: Runner, collator: Collator, held_out: Sequence[tuple[Example, Example]]) -> float:
    """Nats, per clip."""
    gaps = []
    for there, back in held_out[:8]:
        reverse = back.model_copy(update={"messages": there.messages})
        told = [float(runner.loss(collator.batch([example])).total) for example in (there, reverse)]
        gaps.append(abs(told[0] - told[1]))
    return max(gaps)


def _results(plain: Sequence[Arm], temporal: Sequence[Arm], seconds: float) -> list[Result]:
    more = temporal[0].parameters / plain[0].parameters - 1
    return [
        Result("direction, ordinary LoRA, best seed", max(arm.accuracy for arm in plain), "share", 0.5),
        Result(
            "direction, temporal LoRA, worst seed",
            min(arm.accuracy for arm in temporal),
            "share",
            0.98,
            at_least=True,
        ),
        Result("held-out clips, in mirrored pairs", 2 * TEST_PAIRS, "clips", 96, at_least=True),
        Result("more parameters", 100 * more, "%", 2),
        Result("the whole comparison", seconds, "s", SECONDS),
        Result("arrow gap, ordinary LoRA", max(arm.gap for arm in plain), "nats"),
        Result("arrow gap, temporal LoRA", min(arm.gap for arm in temporal), "nats"),
        Result("one training, ordinary LoRA", statistics.median(arm.seconds for arm in plain), "s"),
        Result("one training, temporal LoRA", statistics.median(arm.seconds for arm in temporal), "s"),
    ]
