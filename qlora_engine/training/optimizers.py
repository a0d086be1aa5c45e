"""The optimizer that was chosen: PyTorch's AdamW, or bitsandbytes' with small or paged moments."""

from collections.abc import Sequence
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW

from schemas.training import Hyperparameters

PAGED = ("paged_adamw", "paged_adamw_8bit")
EIGHT_BIT = ("adamw_8bit", "paged_adamw_8bit")


def make_optimizer(
    groups: Sequence[dict[str, Any]], hyperparameters: Hyperparameters, device: torch.device
) -> torch.optim.Optimizer:
    """An optimizer of parameter groups, each with ``params`` and, where it differs, ``lr``.

    Paged moments need CUDA's unified memory: elsewhere they are kept as usual, with the same numbers
    (`not_paged` says so).
    """
    rate, decay = hyperparameters.learning_rate, hyperparameters.weight_decay
    if hyperparameters.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)
    optimizer: torch.optim.Optimizer = AdamW(  # type: ignore[no-untyped-call]
        groups,
        lr=rate,
        weight_decay=decay,
        optim_bits=8 if hyperparameters.optimizer in EIGHT_BIT else 32,
        is_paged=hyperparameters.optimizer in PAGED and device.type == "cuda",
    )
    return optimizer


def not_paged(hyperparameters: Hyperparameters, device: torch.device) -> str | None:
    """What people should know who asked for paging where there is none."""
    if hyperparameters.optimizer in PAGED and device.type != "cuda":
        return (
            f"optimizer is {hyperparameters.optimizer}, but paging needs a CUDA device: its moments stay in"
            " this node's memory; the numbers are the same"
        )
    return None
