"""The optimizer loop: sum gradients over a batch's parts, check, clip, step, report, and stop when asked."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from qlora_engine.adapters.injection import Injected
from qlora_engine.data.collate import Batch, Collator
from qlora_engine.data.samples import Sampler, batch
from qlora_engine.errors import NonFiniteLoss
from qlora_engine.memory import peak_memory_bytes
from qlora_engine.stopping import StopWish
from qlora_engine.training.checkpoints import Checkpoints, TrainingState
from qlora_engine.training.forward import Runner
from qlora_engine.updates import Alive, CheckpointWritten, StepTaken, Update
from schemas.datasets import Example
from schemas.events.job import ProgressPoint
from schemas.training import Hyperparameters

Emit = Callable[[Update], None]
RECENT_STEPS = 32
"""Steps whose duration the remaining time is estimated from."""
ALIVE_SECONDS = 5.0
"""How often a long step tells that it goes on."""


@dataclass
class Loop:
    """One attempt's way through the optimizer steps; `state` is where it stands."""

    runner: Runner
    injected: Injected
    collator: Collator
    examples: Sequence[Example]
    hyperparameters: Hyperparameters
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    checkpoints: Checkpoints
    steps: int
    state: TrainingState
    emit: Emit
    stop: StopWish
    series: Path
    _recent: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Train up to the last step, or to the first step boundary after a stop was asked for."""
        self.injected.model.train()
        with self._batches() as batches:
            for ahead in batches:
                if self.stop.mode is not None:
                    return
                self._take(ahead)
                if self.state.step % self.hyperparameters.checkpoint_every_steps == 0:
                    self.save()

    def save(self) -> None:
        """Write a checkpoint of the present state."""
        folder = self.checkpoints.write(self.state)
        self.emit(CheckpointWritten(step=self.state.step, folder=str(folder)))

    @contextmanager
    def _batches(self) -> Iterator[Iterator[Future[Batch]]]:
        """The remaining batches, each decoded and encoded while the one before it trains."""
        sampler = Sampler(len(self.examples), self.hyperparameters.seed)
        size = self.hyperparameters.batch_size

        def generate(pool: ThreadPoolExecutor) -> Iterator[Future[Batch]]:
            def prepare(step: int) -> Future[Batch]:
                return pool.submit(lambda: self.collator.batch(batch(sampler, self.examples, step, size)))

            ahead = prepare(self.state.step + 1) if self.state.step < self.steps else None
            for step in range(self.state.step + 1, self.steps + 1):
                current, ahead = ahead, prepare(step + 1) if step < self.steps else None
                assert current is not None  # noqa: S101 - an invariant
                yield current

        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            try:
                yield generate(pool)
            finally:
                pool.shutdown(cancel_futures=True)

    def _take(self, ahead: Future[Batch]) -> None:
        began = time.perf_counter()
        step = self.state.step + 1
        examples = ahead.result()
        loss = self._accumulate(examples, step)
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                [parameter for _, parameter in self.injected.trainable()], self.hyperparameters.max_grad_norm
            )
        )
        if not math.isfinite(norm):
            raise self._non_finite("the gradient norm", norm, step)
        rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - began
        self.state = TrainingState(
            step=step,
            cursor=step * self.hyperparameters.batch_size,
            loss_first=loss if self.state.loss_first is None else self.state.loss_first,
            loss_last=loss,
            seconds=self.state.seconds + seconds,
        )
        self._report(
            ProgressPoint(
                step=step,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens=examples.tokens,
                tokens_per_second=examples.tokens / seconds,
                step_seconds=seconds,
            )
        )

    def _accumulate(self, examples: Batch, step: int) -> float:
        """The batch's loss per supervised token; its exact gradient is left in the parameters."""
        supervised = examples.supervised
        total = 0.0
        spoken = time.perf_counter()
        for part in examples.parts(self.hyperparameters.micro_batch_size or len(examples)):
            loss = self.runner.loss(part) / supervised
            value = float(loss.detach())
            if not math.isfinite(value):
                raise self._non_finite("the loss", value, step)
            loss.backward()  # type: ignore[no-untyped-call]
            total += value
            if time.perf_counter() - spoken > ALIVE_SECONDS:
                self.emit(Alive())
                spoken = time.perf_counter()
        return total

    def _non_finite(self, what: str, value: float, step: int) -> NonFiniteLoss:
        return NonFiniteLoss(
            f"{what} is {value} at step {step}; the step was not taken. Lower learning_rate"
            f" ({self.hyperparameters.learning_rate:g}) or max_grad_norm"
        )

    def _report(self, point: ProgressPoint) -> None:
        with self.series.open("a", encoding="utf-8") as series:
            series.write(json.dumps(point.model_dump(mode="json")) + "\n")
        self._recent = [*self._recent[1 - RECENT_STEPS :], point.step_seconds]
        self.emit(
            StepTaken(
                total_steps=self.steps,
                epoch=self.state.cursor / len(self.examples),
                point=point,
                eta_seconds=sum(self._recent) / len(self._recent) * (self.steps - point.step),
                peak_memory_bytes=peak_memory_bytes(self.runner.base.device),
            )
        )
