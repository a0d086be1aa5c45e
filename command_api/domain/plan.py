"""What a training will amount to, before any agent has seen it."""

from dataclasses import dataclass

from schemas.datasets import DatasetFacts
from schemas.training import Hyperparameters, held_out_count, total_steps


@dataclass(frozen=True, slots=True)
class Plan:
    """An estimate where a clip has several examples; TrainingStarted brings the exact figures."""

    total_steps: int
    training_examples: int
    held_out_examples: int
    epochs: float | None
    """None when steps are counted in tokens: how many an example has, only the model's tokenizer tells."""


def plan_training(facts: DatasetFacts, hyperparameters: Hyperparameters) -> Plan:
    """Split the dataset by the rule that the engine uses, and count the optimizer steps."""
    held_out = _held_out(facts, hyperparameters.held_out_fraction)
    training = facts.examples - held_out
    steps = total_steps(hyperparameters, training)
    if hyperparameters.max_steps is None:
        return Plan(steps, training, held_out, epochs=hyperparameters.epochs)
    if hyperparameters.tokens_per_step is not None:
        return Plan(steps, training, held_out, epochs=None)
    return Plan(steps, training, held_out, epochs=steps * hyperparameters.batch_size / training)


def _held_out(facts: DatasetFacts, fraction: float) -> int:
    if facts.validation_examples is not None:
        return facts.validation_examples
    groups = facts.split_groups or facts.clips
    return min(facts.examples - 1, round(facts.examples * held_out_count(groups, fraction) / groups))
