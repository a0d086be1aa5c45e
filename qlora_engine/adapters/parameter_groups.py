"""Which learning rate each trainable tensor gets: LoRA+ (arXiv:2402.12354) and temporal kernels differ."""

from typing import Any

from qlora_engine.adapters.injection import Injected
from qlora_engine.adapters.temporal import is_temporal
from schemas.training import Hyperparameters


def parameter_groups(injected: Injected, hyperparameters: Hyperparameters) -> list[dict[str, Any]]:
    """Groups for an optimizer; the first has the plain learning rate; without ratios it is the only one."""
    by_ratio: dict[float, list[Any]] = {1.0: []}
    for name, parameter in injected.trainable():
        by_ratio.setdefault(_ratio(name, hyperparameters), []).append(parameter)
    return [
        {"params": parameters, "lr": hyperparameters.learning_rate * ratio}
        for ratio, parameters in by_ratio.items()
    ]


def _ratio(name: str, hyperparameters: Hyperparameters) -> float:
    if is_temporal(name):
        return hyperparameters.temporal_learning_rate_ratio
    if ".lora_B." in name:
        return hyperparameters.lora_plus_ratio
    return 1.0
