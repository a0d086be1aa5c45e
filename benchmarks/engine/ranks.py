"""Does rank allocation find the side that has to change, and is a training better for it?

Three tasks whose right side is known, because nothing else was changed: an NF4 base that was pre-trained on
stills gets its vision tower turned, or its connector, and has to describe stills as before; or it gets
captions of another form. Each is trained with uniform ranks and with allocated ones at equal parameters,
without the gate; the test rows are seen by nothing but the last measurement. A side counts as found where,
of the three trainings of one seed, the one that needs it gives it the most. What the gate costs is measured
apart.
"""

import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch
from transformers import SmolVLMForConditionalGeneration

from benchmarks.engine.order_blind import CONTEXT, Drawings
from benchmarks.installation import console, scratch
from benchmarks.report import Result
from qlora_engine.adapters.injection import inject
from qlora_engine.adapters.parameter_groups import parameter_groups
from qlora_engine.adapters.ranks.resize import Resizing, adapted_layers, rank_cost, ranks_of
from qlora_engine.adapters.ranks.rounds import planned_rounds
from qlora_engine.data.batches import Cursor, planned
from qlora_engine.data.collate import Batch, Collator, Sample, packed
from qlora_engine.device import one_thread
from qlora_engine.models.loading import load_model
from qlora_engine.models.tiny import make_tiny_model
from qlora_engine.stopping import StopWish
from qlora_engine.training.checkpoints import Checkpoints, Identity, TrainingState
from qlora_engine.training.evaluation import Evaluator
from qlora_engine.training.export import Exporter
from qlora_engine.training.forward import Runner
from qlora_engine.training.keepsakes import Keepsakes
from qlora_engine.training.loop import Loop
from qlora_engine.training.optimizers import make_optimizer
from qlora_engine.training.rank_phase import rank_phase
from qlora_engine.training.schedule import learning_rate_factor
from schemas.adapters import Modality, RankAllocation
from schemas.datasets import Example, one_turn
from schemas.training import Hyperparameters

Task = Modality
"""The side that has to change."""
TASKS: tuple[Task, ...] = ("vision", "connector", "text")
TIMED: Task = "text"
Way = Literal["uniform", "allocated", "gated"]
WAYS: tuple[Way, ...] = ("uniform", "allocated", "gated")
SEEDS, STEPS, BATCH, RANK = 5, 160, 32, 4
TRAINING, TEST = 1600, 256
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Run:
    """What one training came to."""

    loss: float
    """Of the test rows, nats per response token."""
    parameters: int
    seconds: float
    """CPU time of the training."""
    shares: dict[Modality, float]
    """Parameters of each part, over those that it has with uniform ranks."""


@dataclass(frozen=True)
class Kept(Collator):
    """Encodes each example once."""

    samples: tuple[Sample, ...] = ()

    def sample(self, example: Example) -> Sample:
        return self.samples[example.row - 1]

    def batch(self, examples: Sequence[Example]) -> Batch:
        return packed([self.sample(example) for example in examples])


def measure(quick: bool = False) -> list[Result]:
    """Run the benchmark; about three minutes, or under one with one seed."""
    seeds = 1 if quick else SEEDS
    with (
        scratch() as folder,
        ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as processes,
    ):
        console.print("engine.ranks: pre-training a base …")
        with one_thread():
            bases = make_bases(folder)
        waiting = {
            (task, seed, way): processes.submit(train, bases[task], folder, task, seed, way)
            for seed in range(seeds)
            for task in TASKS
            for way in WAYS
            if way != "gated" or task == TIMED
        }
        runs = {key: run.result() for key, run in waiting.items()}
    for (task, seed, way), run in runs.items():
        shares = ", ".join(f"{part} {share:.2f}" for part, share in run.shares.items())
        console.print(
            f"engine.ranks: {task}, seed {seed}, {way}: {run.loss:.4f} nats, {run.seconds:.1f} s ({shares})"
        )
    return _results(runs, seeds)


def _results(runs: dict[tuple[Task, int, Way], Run], seeds: int) -> list[Result]:
    pairs = {
        (task, seed): (runs[task, seed, "uniform"], runs[task, seed, "allocated"])
        for task in TASKS
        for seed in range(seeds)
    }
    found = [
        pairs[part, seed][1].shares[part] == max(pairs[task, seed][1].shares[part] for task in TASKS)
        for part in TASKS
        for seed in range(seeds)
    ]
    overhead = statistics.median(
        runs[TIMED, seed, "gated"].seconds / runs[TIMED, seed, "uniform"].seconds - 1 for seed in range(seeds)
    )
    return [
        Result("the right side found", statistics.mean(found), "share", 0.8, at_least=True),
        Result(
            "held-out loss not worse than uniform",
            statistics.mean(ours.loss <= uniform.loss for uniform, ours in pairs.values()),
            "share",
            0.8,
            at_least=True,
        ),
        Result(
            "parameters, allocated / uniform",
            max(b.parameters / a.parameters for a, b in pairs.values()),
            "ratio",
            1.0,
        ),
        Result("more CPU time with gate and measurements", 100 * overhead, "%", 3),
        *(
            Result(
                f"held-out loss, {task}, allocated / uniform",
                statistics.median(
                    ours.loss / uniform.loss for (of, _), (uniform, ours) in pairs.items() if of == task
                ),
                "ratio",
            )
            for task in TASKS
        ),
        Result("runs compared", len(pairs), "runs"),
    ]


def make_bases(folder: Path) -> dict[Task, Path]:
    """The base, and two that have a part of their features turned: in the vision tower, in the connector."""
    base = make_tiny_model(folder / "base")
    return {
        "text": base,
        "vision": _turned(base, folder / "vision", (".fc1.weight", ".fc2.weight")),
        "connector": _turned(base, folder / "connector", ("modality_projection.proj.weight",)),
    }


def _turned(base: Path, folder: Path, names: tuple[str, ...]) -> Path:
    shutil.copytree(base, folder)
    model = SmolVLMForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(names):
                turn, _ = torch.linalg.qr(torch.randn(TURNED, TURNED, generator=generator))
                weight[:TURNED] = turn @ weight[:TURNED]
    model.save_pretrained(folder)
    return folder


TURNED = 48
"""Of 64 features: undoing it takes as many ranks of the connector's one layer."""


def examples_of(task: Task, drawings: Drawings, rng: random.Random, count: int) -> list[Example]:
    found = []
    for _ in range(count):
        example = drawings.still(rng)
        if task == "text":
            words = example.response.split()  # a red square sits up left
            told = f"{' '.join(words[4:])}: {words[2]}, {words[1]}"
            example = example.model_copy(update={"messages": one_turn(example.prompt, told)})
        found.append(example)
    return found


def train(base: Path, folder: Path, task: Task, seed: int, way: Way) -> Run:
    """One training."""
    wish = None if way == "uniform" else RankAllocation(gate=way == "gated")
    chosen = Hyperparameters(
        rank=RANK, alpha=2.0 * RANK, learning_rate=5e-3, warmup_ratio=0.05, max_steps=STEPS, batch_size=BATCH,
        seed=seed, rank_allocation=wish, checkpoint_every_steps=10_000_000,
    )  # fmt: skip
    drawings, rng = Drawings(), random.Random(seed + 1)
    examples = examples_of(task, drawings, rng, TRAINING + TEST)
    loaded = load_model(str(base), CPU)
    plain = Collator(loaded.prompts, drawings, CONTEXT)
    collator = Kept(loaded.prompts, drawings, CONTEXT, tuple(plain.sample(each) for each in examples))
    training, test = examples[:TRAINING], examples[TRAINING:]
    rounds = planned_rounds(chosen, STEPS, len(test))
    injected = inject(loaded, chosen, None if rounds is None else rounds.floor_rank)
    optimizer = make_optimizer(parameter_groups(injected, chosen), chosen, CPU)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(chosen, STEPS))
    runner, keepsakes = Runner(injected.model, loaded), Keepsakes(len(training))
    resizing = Resizing(injected.model, optimizer, chosen, injected.alphas)
    series = folder / f"{task}-{seed}-{way}.jsonl"
    identity = Identity(chosen, "0" * 64, "0" * 64)
    loop = Loop(
        runner=runner, injected=injected, collator=collator, examples=training,
        plan=planned(chosen, [len(collator.sample(each).ids) for each in training]), hyperparameters=chosen,
        optimizer=optimizer, scheduler=scheduler, evaluator=Evaluator(runner, collator, test, BATCH, 1),
        checkpoints=Checkpoints(
            folder, injected, optimizer, scheduler, Exporter(loaded, injected, chosen, "0" * 64), series,
            identity, keepsakes, resizing,
        ),
        keepsakes=keepsakes,
        ranks=None if rounds is None else rank_phase(injected.parts, resizing, rounds, keepsakes),
        steps=STEPS, state=TrainingState(0, Cursor(), None, None, 0.0), emit=lambda _: None, stop=StopWish(),
        series=series,
    )  # fmt: skip
    began = time.process_time()
    loop.run()
    seconds = time.process_time() - began
    loss = Evaluator(runner, collator, test, TEST, 1).loss(test)
    have: Counter[Modality] = Counter()
    had: Counter[Modality] = Counter()
    ranks = ranks_of(injected.model)
    for name, layer in adapted_layers(injected.model).items():
        have[injected.parts[name]] += rank_cost(layer) * ranks[name]
        had[injected.parts[name]] += rank_cost(layer) * RANK
    return Run(loss, have.total(), seconds, {part: have[part] / had[part] for part in had})
