"""Measures a model on held-out clips without leaving a trace in the training's state."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any, Literal, TypeVar

import torch

from qlora_engine.data.collate import Collator
from qlora_engine.errors import OutOfMemory
from qlora_engine.memory import Exhausted, tried
from qlora_engine.stopping import StopWish
from qlora_engine.training.distributed import ALONE, World
from qlora_engine.training.economy import Failed
from qlora_engine.training.forward import Runner
from schemas.base import Message
from schemas.datasets import Example
from schemas.events.job import Evaluation

FEWEST_CLIPS_FOR_EXACT_MATCH = 8
"""Below that a share of right answers says nothing."""


Phase = Literal["before", "during", "after"]
Found = TypeVar("Found")


class Answer(Message):
    """What the model said to one held-out row."""

    video: str
    prompt: str
    response: str
    """What the captions file asks for."""
    answer: str
    right: bool
    base_answer: str | None = None
    """What was said before the first step; unknown to an attempt that resumed."""


@dataclass(frozen=True)
class Measured:
    """An evaluation and the answers that it rests on."""

    evaluation: Evaluation
    answers: tuple[Answer, ...]


def _give_up(failed: Failed, found: Exhausted) -> None:
    raise OutOfMemory(f"memory does not suffice for evaluating {failed.samples} examples ({found.message})")


@dataclass
class Evaluator:
    """Held-out loss, token accuracy and exact match."""

    runner: Runner
    collator: Collator
    examples: Sequence[Example]
    batch_size: int
    max_new_tokens: int
    world: World = ALONE
    """Who shares the work; all of them measure together, and all get the same result."""

    def measure(
        self,
        stop: StopWish,
        progress: Callable[[int, int], None],
        relieve: Callable[[Failed, Exhausted], None] = _give_up,
    ) -> Measured | None:
        """One pass over the held-out examples; None when a stop was asked for on the way.

        Args:
            relieve: called where memory did not suffice; makes `batch_size` smaller, say, or raises.
        """
        loss, tokens, right = 0.0, 0.0, 0.0
        answers: list[Answer] = []
        mine = self.world.slice(self.examples)
        for found in self._parts(mine, self._part, stop, relieve):
            if found is None:
                return None
            loss += found.loss
            tokens += found.tokens
            right += found.right
            answers.extend(found.answers)
            progress(len(answers) * len(self.examples) // len(mine), len(self.examples))
        loss, tokens, right = self.world.combine([loss, tokens, right], "sum")
        answers = dealt_back(self.world.gather(answers))
        counted = len({answer.video or answer.prompt for answer in answers}) >= FEWEST_CLIPS_FOR_EXACT_MATCH
        evaluation = Evaluation(
            examples=len(self.examples),
            loss=loss / tokens if tokens else None,
            token_accuracy=right / tokens if tokens else None,
            exact_match=sum(answer.right for answer in answers) / len(answers) if counted else None,
        )
        return Measured(evaluation, tuple(answers))

    def some(self, most: int) -> Sequence[Example]:
        """At most so many of the examples, evenly taken from all."""
        return self.examples[:: max(1, -(-len(self.examples) // most))]

    def loss(
        self, examples: Sequence[Example], relieve: Callable[[Failed, Exhausted], None] = _give_up
    ) -> float:
        """Of these examples, per response token, without a trace; `relieve` is as in `measure`."""
        loss, tokens = 0.0, 0.0
        for found in self._parts(self.world.slice(examples), self._loss, StopWish(), relieve):
            assert found is not None  # noqa: S101 - nobody can ask it to stop: it does not take long
            loss, tokens = loss + found[0], tokens + found[1]
        loss, tokens = self.world.combine([loss, tokens], "sum")
        return loss / tokens

    def _parts(
        self,
        mine: Sequence[Example],
        work: Callable[[Sequence[Example]], Found],
        stop: StopWish,
        relieve: Callable[[Failed, Exhausted], None],
    ) -> Iterator[Found | None]:
        """What `work` finds in `batch_size` examples after the other, ending in a None when all are to stop.

        Before each of them the processes agree to go on, so that all leave at the same one, whoever of them
        was told to. Who has finished, or repeats something, is waited for there.
        """
        done = 0
        while True:
            left, stopped = self.world.combine([done < len(mine), stop.mode is not None], "max")
            if stopped and left:
                yield None
                return
            if not left:
                return
            part = mine[done : done + self.batch_size]
            if not part:
                continue
            with undisturbed(self.runner.model, self.runner.base.device):
                found = tried(partial(work, part))
            if isinstance(found, Exhausted):
                relieve(self._failed(part), found)
            else:
                done += len(part)
                yield found

    def _loss(self, examples: Sequence[Example]) -> tuple[float, int]:
        found = self.runner.loss(self.collator.batch(examples))
        return float(found.total), len(found.tokens)

    def _part(self, examples: Sequence[Example]) -> "_Part":
        found = self.runner.loss(self.collator.batch(examples))
        return _Part(
            float(found.total), len(found.tokens), int(found.right.sum()), tuple(self._answers(examples))
        )

    def _failed(self, examples: Sequence[Example]) -> Failed:
        batch = self.collator.batch(examples)
        return Failed("evaluation", len(examples), batch.tokens, batch.supervised)

    def _answers(self, examples: Sequence[Example]) -> Iterator[Answer]:
        answers = self.runner.answers(self.collator.questions(examples), self.max_new_tokens)
        for example, answer in zip(examples, answers, strict=True):
            yield Answer(
                video=example.clip or "",
                prompt=example.prompt,
                response=example.response,
                answer=answer,
                right=answer == example.response.strip(),
            )


@dataclass(frozen=True)
class _Part:
    """Sums over some examples."""

    loss: float
    tokens: int
    right: int
    answers: tuple[Answer, ...]


def dealt_back(hands: Sequence[Sequence[Answer]]) -> list[Answer]:
    """In the order of the examples, of which every process had every n-th."""
    return [answer for row in zip_longest(*hands) for answer in row if answer is not None]


@contextmanager
def undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; random states and modes are afterwards what they were before."""
    was_training = model.training
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)
