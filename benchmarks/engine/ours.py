"""The engine's own parts on the samples of `workload`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch

from benchmarks.engine.workload import MODEL_FOLDER, Drawn
from qlora_engine.adapters.injection import inject
from qlora_engine.adapters.parameter_groups import parameter_groups
from qlora_engine.adapters.ranks.resize import Resizing
from qlora_engine.data.batches import Cursor, StepsOfTokens, planned
from qlora_engine.data.collate import IGNORED, Batch, Collator, Sample, packed
from qlora_engine.data.frames import ClipFrames
from qlora_engine.models.families.base import Moments
from qlora_engine.models.loading import Loaded, load_model
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
from schemas.datasets import Example, one_turn
from schemas.training import Hyperparameters

CPU = torch.device("cpu")


def load(folder: Path, device: torch.device = CPU) -> Loaded:
    return load_model(str(folder / MODEL_FOLDER), device)


@dataclass(frozen=True)
class Drawer(Collator):
    """Gives the drawn samples in place of encoded rows; the row's number says which."""

    drawn: tuple[Sample, ...] = ()

    def sample(self, example: Example) -> Sample:
        return self.drawn[example.row - 1]

    def batch(self, examples: Sequence[Example]) -> Batch:
        return packed([self.sample(example) for example in examples])


def rows(count: int) -> tuple[Example, ...]:
    """Rows that stand for the drawn samples."""
    return tuple(Example(messages=one_turn("?", "!"), row=number + 1) for number in range(count))


def sample_of(drawn: Drawn, loaded: Loaded) -> Sample:
    """A drawn sample as the engine has it after decoding and encoding."""
    ids, clip = drawn.prompt + drawn.answer, None
    if drawn.frames:
        assert loaded.vision is not None
        layout = loaded.vision.layout(64, 64, drawn.frames)
        clip = ClipFrames(drawn.pixels, Moments((0.0,) * drawn.frames, 1.0), layout)
    labels = [IGNORED] * len(drawn.prompt) + drawn.answer
    return Sample(torch.tensor(ids), torch.tensor(labels), torch.arange(len(ids))[None], clip)


def train(
    loaded: Loaded,
    samples: Sequence[Sample],
    hyperparameters: Hyperparameters,
    folder: Path,
    passed: Callable[[int, int, float], None],
) -> int:
    """Take every sample once by the engine's own loop, in steps of tokens; returns the trained parameters.

    `passed` hears of each step its tokens, those of them that are supervised, and its loss per such token.
    """
    plan = planned(hyperparameters, list(map(len, samples)))
    assert isinstance(plan, StepsOfTokens)
    steps = ceil(len(plan.rows(0)) / plan.rows_per_step)
    injected = inject(loaded, hyperparameters)
    optimizer = make_optimizer(parameter_groups(injected, hyperparameters), hyperparameters, loaded.device)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(hyperparameters, steps))
    runner = Runner(injected.model, loaded)
    collator = Drawer(loaded.prompts, None, loaded.context_tokens, drawn=tuple(samples))  # type: ignore[arg-type]
    series, keepsakes = folder / "series.jsonl", Keepsakes(len(samples))
    exporter = Exporter(loaded, injected, hyperparameters, "0" * 64)
    identity = Identity(hyperparameters, "0" * 64, "0" * 64)
    supervised = [int((sample.labels != IGNORED).sum()) for sample in samples]
    state = TrainingState(0, Cursor(), None, None, 0.0)

    cursor = state.cursor

    def emit(update: object) -> None:
        nonlocal cursor
        if isinstance(update, StepTaken):
            step = plan.at(cursor)
            cursor = step.after
            seen = sum(supervised[sample] for row in step.rows for sample in row)
            passed(update.point.tokens, seen, update.point.loss)

    Loop(
        runner=runner, injected=injected, collator=collator, examples=rows(len(samples)), plan=plan,
        hyperparameters=hyperparameters, optimizer=optimizer, scheduler=scheduler,
        evaluator=Evaluator(runner, collator, (), 1, 1),
        checkpoints=Checkpoints(
            folder, injected, optimizer, scheduler, exporter, series, identity, keepsakes,
            Resizing(injected.model, optimizer, hyperparameters, injected.alphas),
        ),
        keepsakes=keepsakes, ranks=None, steps=steps, state=state, emit=emit, stop=StopWish(), series=series,
    ).run()  # fmt: skip
    return injected.trainable_parameters
