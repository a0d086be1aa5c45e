"""The optimizer loop: sum gradients over a step's rows, check, clip, step, report, and stop when asked."""

import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from qlora_engine.adapters.injection import Injected, checkpoint_activations
from qlora_engine.data.batches import Cursor, Step, Steps
from qlora_engine.data.collate import Batch, Collator
from qlora_engine.data.frames import Frames
from qlora_engine.errors import NonFiniteLoss, OutOfMemory
from qlora_engine.memory import Exhausted, peak_memory_bytes, return_what_is_free, tried
from qlora_engine.spans import span
from qlora_engine.stopping import StopWish
from qlora_engine.training.calibration import Calibration
from qlora_engine.training.checkpoints import Checkpoints, TrainingState
from qlora_engine.training.distributed import ALONE, World
from qlora_engine.training.economy import Economy, Failed, Site, next_rung
from qlora_engine.training.evaluation import Evaluator, Measured, Phase
from qlora_engine.training.evidence import RowLoss, write_evidence
from qlora_engine.training.forward import Runner
from qlora_engine.training.keepsakes import Keepsakes
from qlora_engine.training.optimizer_step import RepeatableSteps
from qlora_engine.training.passes import Pass, passes
from qlora_engine.training.random_states import RandomStates
from qlora_engine.training.rank_phase import RankPhase
from qlora_engine.training.rank_trial import GIVE_OUT_RANKS, give_out_ranks
from qlora_engine.training.step import Prepared, Seen, Taken
from qlora_engine.updates import (
    Alive,
    Calibrated,
    CheckpointWritten,
    EvaluationDone,
    Logged,
    OomRecovered,
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
    ranks: RankPhase | None
    steps: int
    state: TrainingState
    emit: Emit
    stop: StopWish
    series: Path
    lengths: Sequence[int] = ()
    """Tokens by example, by which rows are dealt where several processes share a step."""
    frames: Frames | None = None
    """Where fewer frames of each clip could come from."""
    world: World = ALONE
    calibration: Calibration | None = None
    adapter_step: int | None = None
    """The step that early stopping took the adapter of, at the end."""
    _recent: list[float] = field(default_factory=list)
    _failing: Failed = field(default_factory=lambda: Failed("forward"))
    """What is being computed: if memory does not suffice, it was this."""
    _rows: list[RowLoss] = field(default_factory=list)
    """Of the present step."""

    def __post_init__(self) -> None:
        self.economy = self.state.economy
        """The rungs taken when memory did not suffice; it only ever gets thriftier."""
        self._economise(self.economy)
        self._optimizer_steps = RepeatableSteps(self.optimizer)

    def run(self) -> None:
        """Train up to the last step, to early stopping, or to the first step after a stop was asked for."""
        self.injected.model.train()
        if self.state.looked != self.state.step:  # stopped in the middle of an evaluation
            self._look()
        with self._ahead() as prepared:
            for ahead in prepared:
                if self.asked_to_stop:
                    return
                if self._fell_behind:
                    break
                before = self.state.step
                if self.ranks is not None and self.ranks.due(before):
                    with span(self.emit, GIVE_OUT_RANKS, step=before):
                        given_out = give_out_ranks(self, self.ranks, ahead, prepared)
                    if not given_out:
                        return
                else:
                    self.report(self.take(ahead))
                self._look()
                if self._passed(self.hyperparameters.checkpoint_every_steps, before):
                    self.save()
        self._end_with_the_best()

    @property
    def asked_to_stop(self) -> bool:
        """Asked by all processes together."""
        return self.world.asked(self.stop) is not None

    def evaluate(self, phase: Phase) -> Measured | None:
        """Measure the adapter on held-out examples; None when a stop was asked for on the way."""
        total = len(self.evaluator.examples)
        self.emit(Preparing(phase="evaluating", total=total))
        with span(self.emit, "evaluate", phase=phase, step=self.state.step, examples=total):
            measured = self.evaluator.measure(
                self.stop,
                lambda done, total: self.emit(Preparing(phase="evaluating", done=done, total=total)),
                self.relieve,
            )
        return_what_is_free()
        self.keep_up()
        if measured is not None:
            earlier = None if self.adapter_step == self.state.step else self.adapter_step
            self.emit(
                EvaluationDone(
                    step=self.state.step, phase=phase, evaluation=measured.evaluation, adapter_step=earlier
                )
            )
        return measured

    def save(self) -> None:
        """Write a checkpoint of the present state; called by all processes together."""
        self.state = replace(self.state, economy=self.economy)
        folder = self.checkpoints.write(self.state)
        self.emit(CheckpointWritten(step=self.state.step, folder=str(folder)))

    # ---- one step ----------------------------------------------------------------------------------------

    def take(self, ahead: Future[Prepared]) -> Taken:
        """One optimizer step; `report` tells of it, where it counts."""
        began = time.perf_counter()
        number = self.state.step + 1
        if self.calibration is not None:
            self.calibration.begin(peak_memory_bytes(self.runner.base.device))
        prepared = ahead.result()
        supervised = self.world.agree(prepared.supervised, "sum")
        prepared, seen = self._computed(prepared, supervised, number)
        tokens, loss = self._together(prepared, seen)
        norm = self._clip(number)
        rate = float(self.scheduler.get_last_lr()[0])
        falls: dict[torch.nn.Parameter, float] | None = (
            {} if self.ranks is not None and self.ranks.watches(number) else None
        )
        self._optimizer_steps.take(
            lambda: self.economy.optimizer_slice,
            lambda found: self.relieve(Failed("optimizer"), found),
            falls,
        )
        if self.ranks is not None and falls is not None:
            self.ranks.credits.add(falls)
        self.scheduler.step()
        self.optimizer.zero_grad()
        return_what_is_free()
        self.keep_up()
        seconds = time.perf_counter() - began
        self.state = replace(
            self.state,
            step=number,
            cursor=prepared.step.after,
            loss_first=loss if self.state.loss_first is None else self.state.loss_first,
            loss_last=loss,
            seconds=self.state.seconds + seconds,
        )
        point = ProgressPoint(
            step=number,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens=int(tokens),
            tokens_per_second=tokens / seconds,
            step_seconds=seconds,
        )
        return Taken(point, prepared.step)

    def _computed(self, prepared: Prepared, supervised: float, number: int) -> tuple[Prepared, Seen]:
        """This process's part of the step, whose exact gradient is left in the parameters.

        Where memory does not suffice, the same step is computed again, with the same random numbers. Nothing
        in here waits for other processes, so each may do so by itself.
        """
        random = RandomStates.now(self.runner.base.device)
        while True:
            if prepared.frames_divisor != self.economy.frames_divisor:
                prepared = self._prepared(prepared.step)
            found = tried(partial(self._accumulate, prepared, supervised, number))
            if not isinstance(found, Exhausted):
                return prepared, found
            self.optimizer.zero_grad()
            random.restore()
            self.relieve(self._failing, found)

    def _accumulate(self, prepared: Prepared, supervised: float, number: int) -> Seen:
        seen = Seen()
        self._rows = []
        whole = prepared.samples
        spoken = time.perf_counter()
        for row, places in zip(prepared.rows, prepared.parts, strict=True):
            with closing(self._passes(row)) as parts:
                for part in parts:
                    samples = {place: whole[place] for place in places[part.first : part.end]}
                    self._pass(part, samples, supervised, number, seen)
                    if time.perf_counter() - spoken > ALIVE_SECONDS:
                        self.emit(Alive())
                        spoken = time.perf_counter()
        return seen

    def _together(self, prepared: Prepared, seen: Seen) -> tuple[float, float]:
        """Tokens of the step and its loss per supervised token; all gradients are added up.

        Every process hears what the examples cost, so that all keep the same.
        """
        losses = [seen.by_place.get(place, 0.0) for place in range(len(prepared.samples))]
        tokens, loss, *losses = self.world.combine([prepared.tokens, seen.loss, *losses], "sum")
        self._rows = []
        for sample, cost in zip(prepared.samples, losses, strict=True):
            self.keepsakes.saw(sample, cost)
            self._rows.append(RowLoss.of(self.examples[sample], cost))
        self.world.sum_gradients(parameter for _, parameter in self.injected.trainable())
        return tokens, loss

    def _clip(self, number: int) -> float:
        """The gradient's norm before it was clipped."""
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                [parameter for _, parameter in self.injected.trainable()], self.hyperparameters.max_grad_norm
            )
        )
        if not math.isfinite(norm):
            self.world.leave_it_to_the_first()
            raise self._non_finite("the gradient norm", norm, number)
        return norm

    def _pass(
        self, part: Pass, samples: Mapping[int, int], supervised: float, number: int, seen: Seen
    ) -> None:
        """One forward and one backward pass; `samples` are by their place in the step."""
        self._failing = _failing("forward", part.batch)
        loss = self.runner.loss(part.batch)
        shares = torch.split(loss.tokens.cpu(), part.batch.supervised_lengths)
        for (place, sample), tokens in zip(samples.items(), shares, strict=True):
            seen.by_place[place] = float(tokens.mean())
            self._rows.append(RowLoss.of(self.examples[sample], seen.by_place[place]))
        value = float(loss.total.detach()) / supervised
        if not math.isfinite(value):
            raise self._non_finite("the loss", value, number)
        self._failing = _failing("backward", part.batch)
        (loss.total / supervised).backward()  # type: ignore[no-untyped-call]
        seen.loss += value

    def _passes(self, row: Batch) -> Generator[Pass]:
        family = self.runner.base.family
        return passes(
            self.injected.model,
            lambda layer: family.modality(layer) in ("vision", "connector"),
            self.runner.base.device,
            row,
            self.economy.tokens_per_pass,
        )

    def _non_finite(self, what: str, value: float, number: int) -> NonFiniteLoss:
        found = write_evidence(
            self.series.parent, self.series, what, value, number, self._rows, self.injected.trainable()
        )
        for line in found:
            self.emit(line)
        return NonFiniteLoss(
            f"{what} is {value} at step {number}; the step was not taken. Lower learning_rate"
            f" ({self.hyperparameters.learning_rate:g}) or max_grad_norm. {found[0].message}."
            " The training's log has all rows and tensors"
        )

    def report(self, taken: Taken) -> None:
        """A step counts: into the series, and to whoever watches."""
        point = taken.point
        if self.world.first:
            with self.series.open("a", encoding="utf-8") as series:
                series.write(json.dumps(point.model_dump(mode="json")) + "\n")
        self._recent = [*self._recent[1 - RECENT_STEPS :], point.step_seconds]
        peak = peak_memory_bytes(self.runner.base.device)
        if self.calibration is not None:
            corrected = self.calibration.after(taken.step, point.step_seconds, peak)
            if corrected is not None:
                self.emit(Calibrated(step=point.step, preflight=corrected))
        self.emit(
            StepTaken(
                total_steps=self.steps,
                epoch=taken.after.examples / len(self.examples),
                point=point,
                eta_seconds=sum(self._recent) / len(self._recent) * (self.steps - point.step),
                peak_memory_bytes=peak,
            )
        )

    # ---- what comes next ---------------------------------------------------------------------------------

    @contextmanager
    def _ahead(self) -> Iterator[Iterator[Future[Prepared]]]:
        """The remaining steps, each decoded and encoded while those before it train."""

        def generate(pool: ThreadPoolExecutor) -> Iterator[Future[Prepared]]:
            waiting: list[Future[Prepared]] = []
            cursor: Cursor = self.state.cursor
            for _ in range(self.state.step, self.steps):
                step = self.plan.at(cursor)
                cursor = step.after
                waiting.append(pool.submit(self._prepared, step))
                if len(waiting) > AHEAD:
                    yield waiting.pop(0)
            yield from waiting

        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            try:
                yield generate(pool)
            finally:
                pool.shutdown(cancel_futures=True)

    def _prepared(self, step: Step) -> Prepared:
        divisor, collator = self.economy.frames_divisor, self.collator
        samples = [self.examples[sample] for row in step.rows for sample in row]
        parts = self.world.share(step.rows, self.lengths)
        rows = tuple(collator.batch([samples[place] for place in part]) for part in parts)
        return Prepared(step, parts, rows, divisor)

    # ---- where memory does not suffice -------------------------------------------------------------------

    def relieve(self, failed: Failed, found: Exhausted) -> None:
        """Take the next rung.

        Raises:
            OutOfMemory: there is none.
        """
        number = self.state.step + (failed.site != "evaluation")
        fewer_frames = self.hyperparameters.oom_fewer_frames and self.frames is not None
        rung = next_rung(self.economy, failed, fewer_frames=fewer_frames)
        if rung is None:
            raise OutOfMemory(
                f"memory does not suffice ({failed.site}, step {number}: {found.message}), though"
                f" {self.economy.described}; lower frames, rank or batch_size, or choose a larger device"
            )
        self._economise(rung.economy)
        self.emit(
            OomRecovered(
                step=number, site=failed.site, action=rung.action, before=rung.before, after=rung.after
            )
        )

    def keep_up(self) -> None:
        """What one process does without, all do from here on; called by all together."""
        agreed = Economy.of_thrift(self.world.combine(self.economy.thrift, "max"))
        if agreed != self.economy:
            self._economise(agreed)

    def _economise(self, economy: Economy) -> None:
        """Live by `economy` from here on."""
        self.runner = replace(self.runner, loss_chunk=economy.loss_chunk)
        self.evaluator.runner = self.runner
        if economy.evaluated_at_once is not None:
            self.evaluator.batch_size = economy.evaluated_at_once
        if economy.gradient_checkpointing and not self.hyperparameters.gradient_checkpointing:
            checkpoint_activations(self.runner.base)
        if economy.frames_divisor > 1 and self.frames is not None:
            source = self.frames.fewer(economy.frames_divisor)
            self.collator = self.evaluator.collator = replace(self.collator, frames=source)
            self.checkpoints.exporter.sampling = source.sampling  # whoever uses the adapter needs to know
        self.economy = economy  # last: steps that are being prepared count as made by the one before

    # ---- early stopping ----------------------------------------------------------------------------------

    @property
    def _fell_behind(self) -> bool:
        """Whether the held-out loss has not fallen for as long as was to be waited."""
        patience = self.hyperparameters.early_stopping_patience
        return patience is not None and self.state.worse >= patience

    def _passed(self, every: int, before: int) -> bool:
        """Whether something that is due at every so many steps was reached since step `before`."""
        return self.state.step // every > before // every

    def _look(self) -> None:
        """Evaluate where it is due; at the last step that is done anyway."""
        every = self.hyperparameters.evaluate_every_steps
        if every is None or not self._passed(every, self.state.looked) or self.state.step == self.steps:
            self.state = replace(self.state, looked=self.state.step)
            return
        measured = self.evaluate("during")
        if measured is None:
            return
        self._compare(measured)
        self.state = replace(self.state, looked=self.state.step)
        if self._fell_behind:
            self._log(
                "stopped_early",
                f"The held-out loss has not fallen below {self.state.best_loss:.4f} (step"
                f" {self.state.best_step}) for {self.state.worse} evaluations: ending after step"
                f" {self.state.step} of {self.steps}",
            )

    def _compare(self, measured: Measured) -> None:
        if self.hyperparameters.early_stopping_patience is None:
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
            measured = self.evaluate("during")
            if measured is None:
                return
            self._compare(measured)
        self.adapter_step = self.state.best_step
        if self.state.best_step is None or self.state.best_step == self.state.step:
            return
        self.keepsakes.give_best(self.injected, self.checkpoints.resizing)
        self._log(
            "best_adapter_kept",
            f"The adapter of step {self.state.best_step} is kept: its held-out loss"
            f" {self.state.best_loss:.4f} is the lowest",
        )

    def _log(self, code: str, message: str) -> None:
        self.emit(Logged(level="info", code=code, message=message))


def _failing(site: Site, batch: Batch) -> Failed:
    return Failed(
        site,
        samples=len(batch.lengths),
        tokens=batch.tokens,
        supervised=batch.supervised,
        frames=max((clip.layout.frames for clip in batch.clips[0]), default=0),
    )
