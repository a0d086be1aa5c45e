"""The optimizer loop: sum gradients over a step's rows, check, clip, step, report, and stop when asked."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from qlora_engine.adapters.injection import Injected
from qlora_engine.data.batches import Cursor, Step, Steps
from qlora_engine.data.collate import Batch, Collator
from qlora_engine.errors import NonFiniteLoss
from qlora_engine.memory import peak_memory_bytes
from qlora_engine.spans import span
from qlora_engine.stopping import StopWish
from qlora_engine.training.checkpoints import Checkpoints, TrainingState
from qlora_engine.training.evaluation import Evaluator, Measured, Phase
from qlora_engine.training.forward import Runner
from qlora_engine.training.keepsakes import Keepsakes
from qlora_engine.updates import (
    Alive,
    CheckpointWritten,
    EvaluationDone,
    Logged,
    Preparing,
    StepTaken,
    Update,
)
from schemas.datasets import Example
from schemas.events.job import ProgressPoint
from schemas.training import Hyperparameters

Emit = Callable[[Update], None]
RECENT_STEPS = 32
"""Steps whose duration the remaining time is estimated from."""
ALIVE_SECONDS = 5.0
"""How often a long step tells that it goes on."""
AHEAD = 2
"""Steps whose rows are decoded and encoded while the present one trains."""


@dataclass(frozen=True)
class Prepared:
    """What one optimizer step takes, decoded and encoded."""

    step: Step
    rows: tuple[Batch, ...]

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.rows)

    @property
    def supervised(self) -> int:
        """Tokens that the loss is computed on."""
        return sum(row.supervised for row in self.rows)


@dataclass
class Loop:
    """One attempt's way through the optimizer steps; `state` is where it stands."""

    runner: Runner
    injected: Injected
    collator: Collator
    examples: Sequence[Example]
    plan: Steps
    hyperparameters: Hyperparameters
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    evaluator: Evaluator
    checkpoints: Checkpoints
    keepsakes: Keepsakes
    steps: int
    state: TrainingState
    emit: Emit
    stop: StopWish
    series: Path
    _recent: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Train up to the last step, to early stopping, or to the first step after a stop was asked for."""
        self.injected.model.train()
        with self._ahead() as prepared:
            for ahead in prepared:
                if self.stop.mode is not None:
                    return
                if self._fell_behind:
                    break
                self._take(ahead)
                self._look()
                if self.state.step % self.hyperparameters.checkpoint_every_steps == 0:
                    self.save()
        self._end_with_the_best()

    def evaluate(self, phase: Phase) -> Measured | None:
        """Measure the adapter on held-out examples; None when a stop was asked for on the way."""
        total = len(self.evaluator.examples)
        self.emit(Preparing(phase="evaluating", total=total))
        with span(self.emit, "evaluate", phase=phase, step=self.state.step, examples=total):
            measured = self.evaluator.measure(
                self.stop,
                lambda done, total: self.emit(Preparing(phase="evaluating", done=done, total=total)),
            )
        if measured is not None:
            self.emit(EvaluationDone(step=self.state.step, phase=phase, evaluation=measured.evaluation))
        return measured

    def save(self) -> None:
        """Write a checkpoint of the present state."""
        folder = self.checkpoints.write(self.state)
        self.emit(CheckpointWritten(step=self.state.step, folder=str(folder)))

    # ---- one step ----------------------------------------------------------------------------------------

    def _take(self, ahead: Future[Prepared]) -> None:
        began = time.perf_counter()
        number = self.state.step + 1
        prepared = ahead.result()
        loss = self._accumulate(prepared, number)
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                [parameter for _, parameter in self.injected.trainable()], self.hyperparameters.max_grad_norm
            )
        )
        if not math.isfinite(norm):
            raise self._non_finite("the gradient norm", norm, number)
        rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - began
        self.state = replace(
            self.state,
            step=number,
            cursor=prepared.step.after,
            loss_first=loss if self.state.loss_first is None else self.state.loss_first,
            loss_last=loss,
            seconds=self.state.seconds + seconds,
        )
        self._report(
            ProgressPoint(
                step=number,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens=prepared.tokens,
                tokens_per_second=prepared.tokens / seconds,
                step_seconds=seconds,
            )
        )

    def _accumulate(self, prepared: Prepared, number: int) -> float:
        """The step's loss per supervised token; its exact gradient is left in the parameters."""
        supervised = prepared.supervised
        total = 0.0
        spoken = time.perf_counter()
        for row, samples in zip(prepared.rows, prepared.step.rows, strict=True):
            loss = self.runner.loss(row)
            value = float(loss.total.detach()) / supervised
            if not math.isfinite(value):
                raise self._non_finite("the loss", value, number)
            (loss.total / supervised).backward()  # type: ignore[no-untyped-call]
            total += value
            for sample, tokens in zip(
                samples, torch.split(loss.tokens.cpu(), row.supervised_lengths), strict=True
            ):
                self.keepsakes.saw(sample, float(tokens.mean()))
            if time.perf_counter() - spoken > ALIVE_SECONDS:
                self.emit(Alive())
                spoken = time.perf_counter()
        return total

    def _non_finite(self, what: str, value: float, number: int) -> NonFiniteLoss:
        return NonFiniteLoss(
            f"{what} is {value} at step {number}; the step was not taken. Lower learning_rate"
            f" ({self.hyperparameters.learning_rate:g}) or max_grad_norm"
        )

    def _report(self, point: ProgressPoint) -> None:
        with self.series.open("a", encoding="utf-8") as series:
            series.write(json.dumps(point.model_dump(mode="json")) + "\n")
        self._recent = [*self._recent[1 - RECENT_STEPS :], point.step_seconds]
        self.emit(
            StepTaken(
                total_steps=self.steps,
                epoch=self.state.cursor.examples / len(self.examples),
                point=point,
                eta_seconds=sum(self._recent) / len(self._recent) * (self.steps - point.step),
                peak_memory_bytes=peak_memory_bytes(self.runner.base.device),
            )
        )

    # ---- what comes next ---------------------------------------------------------------------------------

    @contextmanager
    def _ahead(self) -> Iterator[Iterator[Future[Prepared]]]:
        """The remaining steps, each decoded and encoded while those before it train."""

        def prepare(step: Step) -> Prepared:
            return Prepared(
                step,
                tuple(self.collator.batch([self.examples[sample] for sample in row]) for row in step.rows),
            )

        def generate(pool: ThreadPoolExecutor) -> Iterator[Future[Prepared]]:
            waiting: list[Future[Prepared]] = []
            cursor: Cursor = self.state.cursor
            for _ in range(self.state.step, self.steps):
                step = self.plan.at(cursor)
                cursor = step.after
                waiting.append(pool.submit(prepare, step))
                if len(waiting) > AHEAD:
                    yield waiting.pop(0)
            yield from waiting

        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            try:
                yield generate(pool)
            finally:
                pool.shutdown(cancel_futures=True)

    # ---- early stopping ----------------------------------------------------------------------------------

    @property
    def _fell_behind(self) -> bool:
        """Whether the held-out loss has not fallen for as long as was to be waited."""
        patience = self.hyperparameters.early_stopping_patience
        return patience is not None and self.state.worse >= patience

    def _look(self) -> None:
        """Evaluate where it is due; at the last step that is done anyway."""
        every = self.hyperparameters.evaluate_every_steps
        if every is None or self.state.step % every or self.state.step == self.steps:
            return
        measured = self.evaluate("during")
        self._compare(measured)
        if self._fell_behind:
            self._log(
                "stopped_early",
                f"The held-out loss has not fallen below {self.state.best_loss:.4f} (step"
                f" {self.state.best_step}) for {self.state.worse} evaluations: ending after step"
                f" {self.state.step} of {self.steps}",
            )

    def _compare(self, measured: Measured | None) -> None:
        if self.hyperparameters.early_stopping_patience is None or measured is None:
            return
        loss = measured.evaluation.loss
        if loss is not None and (self.state.best_loss is None or loss < self.state.best_loss):
            self.state = replace(self.state, best_loss=loss, best_step=self.state.step, worse=0)
            self.keepsakes.keep_best(self.injected)
        else:
            self.state = replace(self.state, worse=self.state.worse + 1)

    def _end_with_the_best(self) -> None:
        """With early stopping, the adapter that had the lowest held-out loss is the result."""
        if self.hyperparameters.early_stopping_patience is None:
            return
        if not self._fell_behind:  # the last steps were not measured yet
            self._compare(self.evaluate("during"))
        if self.state.best_step is None or self.state.best_step == self.state.step:
            return
        self.keepsakes.give_best(self.injected)
        self._log(
            "best_adapter_kept",
            f"The adapter of step {self.state.best_step} is kept: its held-out loss"
            f" {self.state.best_loss:.4f} is the lowest",
        )

    def _log(self, code: str, message: str) -> None:
        self.emit(Logged(level="info", code=code, message=message))
