"""Does rank allocation find the side that has to change, and is a training better for it?

Three tasks whose right side is known, because nothing else was changed. A base that was pre-trained on stills
is damaged in its vision tower (the weights of its layers are drawn anew) or in its connector (the strongest
of what it passes on is taken away) and has to describe stills as before; or it gets captions whose words are
spelt backwards. That this is the side to train is not assumed but measured: adapters on it alone must reach a
lower held-out loss than adapters of the same rank on either other side alone.

Each task is trained with uniform ranks and with allocated ones at equal parameters, without the gate; the
test rows are seen by nothing but the last measurement. A side counts as found where its parameters, over
those that it has with uniform ranks, are more than either other side's. All settings were chosen on seed 100;
those that are judged had no part in it. What the gate costs is measured in trainings that have one.

Where uniform ranks suffice, moving them helps no one, and noise decides. So the connector lets through less
than a caption says (`TAKEN`), and words spelt backwards are more than adapters of rank 4 learn. No damage to
the tower was found that rank limits as clearly (decision 0034): there, noise decides still.
"""

import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
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
from qlora_engine.training.rank_trial import GIVE_OUT_RANKS
from qlora_engine.training.schedule import learning_rate_factor
from qlora_engine.updates import SpanBegan, SpanEnded, StepTaken, Update
from schemas.adapters import Modality, RankAllocation
from schemas.datasets import Example, one_turn
from schemas.training import Hyperparameters

Task = Modality
"""The side that has to change."""
TASKS: tuple[Task, ...] = ("vision", "connector", "text")
TIMED: Task = "text"
Alone = Literal["only vision", "only connector", "only text"]
Way = Literal["uniform", "allocated", "gated"] | Alone
ALONE: dict[Task, Alone] = {"vision": "only vision", "connector": "only connector", "text": "only text"}
DEVELOPMENT = 100
"""The seed that settings were chosen on; the tasks' truth is checked on it, too."""
JUDGED = (200, 201, 202, 203, 204)
STEPS, BATCH, RANK = 480, 16, 4
QUICK_STEPS = 160
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
    allocating: float
    """Share of the CPU time that ranks were given out in, without the steps that were kept of it."""
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
    """Run the benchmark; about eight minutes on two cores, or under one with one seed, shorter trainings and
    without checking the tasks.
    """
    seeds = JUDGED[:1] if quick else JUDGED
    wanted: list[tuple[Task, int, Way]] = [
        (task, seed, way) for seed in seeds for task in TASKS for way in ("uniform", "allocated")
    ]
    wanted += [(TIMED, seed, "gated") for seed in seeds]
    if not quick:
        wanted += [(task, DEVELOPMENT, way) for task in TASKS for way in ALONE.values()]
    with (
        scratch() as folder,
        ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as processes,
    ):
        console.print("engine.ranks: pre-training a base …")
        with one_thread():
            bases = make_bases(folder)
        steps = QUICK_STEPS if quick else STEPS
        waiting = {key: processes.submit(train, bases[key[0]], folder, *key, steps) for key in wanted}
        runs = {}
        for key, run in waiting.items():
            runs[key] = found = run.result()
            shares = ", ".join(f"{part} {share:.2f}" for part, share in found.shares.items())
            console.print(
                f"engine.ranks: {key[0]}, seed {key[1]}, {key[2]}: {found.loss:.4f} nats,"
                f" {found.seconds:.1f} s ({shares})"
            )
    return _results(runs, seeds)


def _results(runs: dict[tuple[Task, int, Way], Run], seeds: Sequence[int]) -> list[Result]:
    pairs = {
        (task, seed): (runs[task, seed, "uniform"], runs[task, seed, "allocated"])
        for task in TASKS
        for seed in seeds
    }
    found = [
        all(ours.shares[task] > share for part, share in ours.shares.items() if part != task)
        for (task, _), (_, ours) in pairs.items()
    ]
    checked = [] if (TASKS[0], DEVELOPMENT, ALONE[TASKS[0]]) not in runs else [_truth(runs)]
    return [
        *checked,
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
        Result(
            "time for giving out ranks, with gate",
            100 * statistics.median(runs[TIMED, seed, "gated"].allocating for seed in seeds),
            "%",
            3,
        ),
        Result(
            "CPU time, with gate / uniform",
            statistics.median(
                runs[TIMED, seed, "gated"].seconds / runs[TIMED, seed, "uniform"].seconds for seed in seeds
            ),
            "ratio",
        ),
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


def _truth(runs: dict[tuple[Task, int, Way], Run]) -> Result:
    """Of the tasks, those whose own side does best alone."""
    true = []
    for task in TASKS:
        alone = {part: runs[task, DEVELOPMENT, way].loss for part, way in ALONE.items()}
        true.append(all(alone[task] < loss for part, loss in alone.items() if part != task))
    return Result("tasks whose own side does best alone", statistics.mean(true), "share", 1.0, at_least=True)


def make_bases(folder: Path) -> dict[Task, Path]:
    """The base, and two that are damaged."""
    base = make_tiny_model(folder / "base")
    return {
        "text": base,
        "vision": _damaged(base, folder / "vision", "vision_model.encoder.layers.", _drawn_anew),
        "connector": _damaged(base, folder / "connector", "modality_projection.", _weakened),
    }


def _damaged(
    base: Path, folder: Path, name: str, damage: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
) -> Path:
    """A copy of which every matrix that has `name` in its name is damaged."""
    shutil.copytree(base, folder)
    model = SmolVLMForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for found, weight in model.named_parameters():
            if name in found and weight.dim() == 2:
                weight.copy_(damage(weight, generator))
    model.save_pretrained(folder)
    return folder


def _drawn_anew(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """And twice as large, so that it hides what goes past it."""
    return torch.randn(weight.shape, generator=generator) * 2 * weight.std()


def _weakened(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Without its `TAKEN` largest singular values."""
    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    sizes[:TAKEN] = 0
    weakened: torch.Tensor = left @ torch.diag(sizes) @ right
    return weakened


TAKEN = 62
"""Of the connector's 64. Place, colour and shape do not pass through what is left: what an adapter adds is
the way that they take, and its rank is what they need."""


def examples_of(task: Task, drawings: Drawings, rng: random.Random, count: int) -> list[Example]:
    found = []
    for _ in range(count):
        example = drawings.still(rng)
        if task == "text":
            told = " ".join(word[::-1] for word in example.response.split())
            example = example.model_copy(update={"messages": one_turn(example.prompt, told)})
        found.append(example)
    return found


def train(base: Path, folder: Path, task: Task, seed: int, way: Way, steps: int) -> Run:
    """One training."""
    wish = RankAllocation(gate=way == "gated") if way in ("allocated", "gated") else None
    parts: tuple[Modality, ...] = tuple(
        part for part in TASKS if way not in ALONE.values() or way == ALONE[part]
    )
    chosen = Hyperparameters(
        rank=RANK, alpha=2.0 * RANK, learning_rate=5e-3, warmup_ratio=0.05, max_steps=steps, batch_size=BATCH,
        seed=seed, rank_allocation=wish, target_modalities=parts, checkpoint_every_steps=10_000_000,
    )  # fmt: skip
    drawings, rng = Drawings(), random.Random(seed + 1)
    examples = examples_of(task, drawings, rng, TRAINING + TEST)
    loaded = load_model(str(base), CPU)
    plain = Collator(loaded.prompts, drawings, CONTEXT)
    collator = Kept(loaded.prompts, drawings, CONTEXT, tuple(plain.sample(each) for each in examples))
    training, test = examples[:TRAINING], examples[TRAINING:]
    rounds = planned_rounds(chosen, steps, len(test))
    injected = inject(loaded, chosen, None if rounds is None else rounds.floor_rank)
    optimizer = make_optimizer(parameter_groups(injected, chosen), chosen, CPU)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(chosen, steps))
    runner, keepsakes = Runner(injected.model, loaded), Keepsakes(len(training))
    resizing = Resizing(injected.model, optimizer, chosen, injected.alphas)
    series = folder / f"{task}-{seed}-{way}.jsonl"
    identity = Identity(chosen, "0" * 64, "0" * 64)
    told: list[tuple[float, Update]] = []
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
        steps=steps, state=TrainingState(0, Cursor(), None, None, 0.0),
        emit=lambda update: told.append((time.process_time(), update)), stop=StopWish(), series=series,
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
    shares = {part: have[part] / had[part] for part in had}
    return Run(loss, have.total(), seconds, _allocating(told, seconds), shares)


def _allocating(told: Sequence[tuple[float, Update]], whole: float) -> float:
    """Of the training's CPU time, the share in which ranks were given out. `told` is at what CPU time.

    The steps that were tried and kept count as much as an ordinary step after them.
    """
    spent, began, kept = 0.0, None, 0
    ordinary: list[float] = []
    last = 0.0
    for at, update in told:
        if isinstance(update, SpanBegan) and update.name == GIVE_OUT_RANKS:
            began, kept, ordinary = at, 0, []
        elif isinstance(update, SpanEnded) and began is not None:
            spent, began = spent + at - began, None
        elif isinstance(update, StepTaken):
            if began is None:
                ordinary.append(at - last)
            else:
                kept += 1
        last = at
    return (spent - kept * statistics.median(ordinary)) / whole if spent else 0.0
