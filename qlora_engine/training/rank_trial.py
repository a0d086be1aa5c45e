"""Ranks are given out; where asked for, after both ways were trained for the same steps and compared.

The two ways begin from the same state and take the same batches. The better one's steps are the training's;
those of the other one leave nothing behind.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from qlora_engine.adapters.injection import Injected
from qlora_engine.adapters.ranks.resize import ranks_of
from qlora_engine.memory import Exhausted
from qlora_engine.training.checkpoints import Checkpoints, Held, TrainingState
from qlora_engine.training.economy import Economy, Failed
from qlora_engine.training.evaluation import Evaluator
from qlora_engine.training.rank_phase import RankPhase
from qlora_engine.training.step import Prepared, Taken
from qlora_engine.updates import Alive, Update
from schemas.events.job import RankTrial

GIVE_OUT_RANKS = "give out ranks"
"""The span of it."""
Batches = Sequence[Future[Prepared]]


class Training(Protocol):
    """What giving out ranks asks of the loop."""

    state: TrainingState
    economy: Economy
    injected: Injected
    checkpoints: Checkpoints
    evaluator: Evaluator

    @property
    def emit(self) -> Callable[[Update], None]: ...
    def take(self, ahead: Future[Prepared]) -> Taken: ...
    def report(self, taken: Taken) -> None: ...
    def keep_up(self) -> None: ...
    def relieve(self, failed: Failed, found: Exhausted) -> None: ...

    @property
    def asked_to_stop(self) -> bool: ...


@dataclass(frozen=True)
class Tried:
    """One way of a trial."""

    taken: tuple[Taken, ...]
    judged: int
    """Held-out examples."""
    loss: float
    """Theirs, after the steps."""
    arrived: Held


def give_out_ranks(
    training: Training, phase: RankPhase, first: Future[Prepared], rest: Iterator[Future[Prepared]]
) -> bool:
    """Change ranks and take the next steps with them; False when a stop was asked for, and nothing done.

    No checkpoint falls in between: whoever resumes from an older one does the same again.
    """
    step, before = training.state.step, ranks_of(training.injected.model)
    if not phase.tries_both(step):
        phase.grow(phase.allocated(step), step)
        training.emit(phase.told(before, step, None))
        training.report(training.take(first))
        return True
    start = training.checkpoints.hold(training.state)
    tried = _both(training, phase, start, [first, *islice(rest, phase.rounds.trial - 1)])
    if tried is None:
        training.state = training.checkpoints.put_back(start)
        return False
    even, ours = tried
    trial = RankTrial(
        steps=len(ours.taken), examples=ours.judged, allocated_loss=ours.loss, uniform_loss=even.loss
    )
    if not trial.passed:
        training.state = training.checkpoints.put_back(even.arrived)
        phase.grow(phase.uniform(), step)
    training.emit(phase.told(before, step, trial))
    for taken in (ours if trial.passed else even).taken:
        training.report(taken)
    return True


def _both(training: Training, phase: RankPhase, start: Held, batches: Batches) -> tuple[Tried, Tried] | None:
    """Even ranks and allocated ones, the latter in place; None when a stop was asked for."""
    step, allocated = training.state.step, phase.allocated(training.state.step)
    while True:
        frames = training.economy.frames_divisor
        if (even := _try(training, phase, phase.even(step), batches)) is None:
            return None
        training.state = training.checkpoints.put_back(start)
        if (ours := _try(training, phase, allocated, batches)) is None:
            return None
        if training.economy.frames_divisor == frames:
            return even, ours
        # Memory did not suffice on the way, and clips give fewer frames now: one way saw more than the other.
        training.state = training.checkpoints.put_back(start)


def _try(training: Training, phase: RankPhase, ranks: Mapping[str, int], batches: Batches) -> Tried | None:
    """Train with these ranks from here; None when a stop was asked for."""
    phase.grow(ranks, training.state.step)
    taken = []
    for batch in batches:
        if training.asked_to_stop:
            return None
        taken.append(training.take(batch))
        training.emit(Alive())
    judged = training.evaluator.some(phase.rounds.judged)
    loss = training.evaluator.loss(judged, training.relieve)
    training.keep_up()
    return Tried(tuple(taken), len(judged), loss, training.checkpoints.hold(training.state))
