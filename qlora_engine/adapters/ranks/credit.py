"""How much each layer's adapter has lowered the loss: loss change allocation.

An optimizer step that moves the parameters by Δθ where the gradient is g changes the loss by g · Δθ, to first
order, and that sum falls apart into layers (Lan, Liu, Zhou and Yosinski, arXiv:1909.01440). Summed over the
steps of a phase it says who did the work. It counts what the optimizer really did: gradients of one sign add
up, noise does not, and Adam's steps are alike in size, so parts whose gradients are large for other reasons
are not favoured. The first steps of a training must be left out: in them text learns how to answer at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qlora_engine.adapters.ranks.resize import adapted_layers

PREFIX = "credit/"


@dataclass(frozen=True)
class Credits:
    """Of the layers of one model, summed over the steps that were watched.

    They are kept in `store` under names that begin with `PREFIX`, so that checkpoints can hold them. All
    processes that share a step have its whole gradient, so each of them finds the same.
    """

    model: Any
    store: dict[str, torch.Tensor]

    def add(self, falls: Mapping[torch.nn.Parameter, float]) -> None:
        """One step more: by how much each parameter has lowered the loss."""
        for name, layer in adapted_layers(self.model).items():
            fall = sum(falls.get(parameter, 0.0) for parameter in layer.parameters())
            before = self.store.get(PREFIX + name, torch.zeros((), dtype=torch.float64))
            self.store[PREFIX + name] = before + fall

    def of(self, layer: str) -> float:
        """In the unit of the loss; 0 for a layer that was not watched, negative for one that did harm."""
        found = self.store.get(PREFIX + layer)
        return 0.0 if found is None else float(found)

    def forget(self) -> None:
        """Begin anew."""
        for name in [name for name in self.store if name.startswith(PREFIX)]:
            del self.store[name]
