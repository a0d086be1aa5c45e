"""The learning rate over the steps: a linear warm-up, then cosine, linear or constant."""

import math
from collections.abc import Callable

from schemas.training import Hyperparameters


def learning_rate_factor(hyperparameters: Hyperparameters, steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at step `taken` + 1; never 0 before the last step is taken."""
    warmup = math.ceil(hyperparameters.warmup_ratio * steps) if hyperparameters.warmup_ratio else 0

    def factor(taken: int) -> float:
        if taken < warmup:
            return (taken + 1) / (warmup + 1)
        done = (taken - warmup) / max(1, steps - warmup)
        match hyperparameters.schedule:
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
            case "linear":
                return max(0.0, 1 - done)
            case "constant":
                return 1.0

    return factor
