"""How much each layer's loss would fall by more rank: singular values of its weight gradient, without noise.

A layer y = W x of a frozen 4-bit weight has the gradient G = dYᵀ X, as large as W. Of it only G Ω is made,
dYᵀ (X Ω), with an Ω that has a few more columns than ranks can be given out (Halko, Martinsson and Tropp,
arXiv:0909.4061). A step along the i-th singular pair lowers the loss in proportion to σᵢ². Batches are few
and gradients noisy, and noise has large singular values, too; so two halves of the batches are measured
apart, and directions that one half finds are valued by the other: σᵢ(G₁) · uᵢᵀ G₂ vᵢ. What is noise to both
is nothing on average. LoRA-GA (arXiv:2407.05000) and GoRA (arXiv:2502.12171) also rank by gradients of W.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

OVERSAMPLED = 8
"""Columns of Ω beyond the ranks that are to be valued."""


@dataclass
class Sketches:
    """Sketched gradients of some layers, summed over the steps that were watched.

    They are kept in `store` under names that begin with `sketch/`, so that checkpoints can hold them.
    """

    layers: Mapping[str, Any]
    """Modules whose output's gradient is that of the frozen layer's: PEFT's LoRA layers."""
    columns: Mapping[str, int]
    """Ranks to be valued, by layer."""
    seed: int
    store: dict[str, torch.Tensor]
    together: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict
    """Adds up what all processes found that share a step; called by each of them, once for each step."""
    _projections: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    @contextmanager
    def watching(self, half: int) -> Iterator[None]:
        """Backward passes inside are added to one of the two halves, 0 or 1; nothing, if they fail."""
        found: dict[str, torch.Tensor] = {}
        with ExitStack() as hooks:
            for name, layer in self.layers.items():
                hooks.callback(layer.register_forward_hook(partial(self._ran, found, name)).remove)
            yield
        for name, sketch in self.together(found).items():
            key = f"sketch/{half}/{name}"
            before = self.store.get(key)
            self.store[key] = sketch if before is None else before.to(sketch.device) + sketch

    def gains(self) -> dict[str, tuple[float, ...]]:
        """The predicted fall of the loss by one more rank, two more …, per layer; not rising.

        Layers that were not run have none.
        """
        found = {}
        for name, layer in self.layers.items():
            halves = [self.store.get(f"sketch/{half}/{name}") for half in (0, 1)]
            if halves[0] is None or halves[1] is None:
                found[name] = tuple[float, ...]()
            else:
                # Adam moves every number of A and B alike, whatever its gradient's size; so a rank moves W by
                # an amount that grows with the root of its size, and the loss falls by that times σ.
                size = layer.in_features * layer.out_features
                common = cross_fitted(halves[0], halves[1])
                found[name] = tuple(math.sqrt(value * size) for value in common)
        return found

    def forget(self) -> None:
        """Make room."""
        for name in [name for name in self.store if name.startswith("sketch/")]:
            del self.store[name]
        self._projections.clear()

    def _ran(
        self,
        found: dict[str, torch.Tensor],
        name: str,
        layer: Any,
        inputs: tuple[torch.Tensor, ...],
        output: Any,
    ) -> None:
        if not output.requires_grad:
            return
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            rows = inputs[0].detach().flatten(0, -2).float()
            seen = rows @ self._projection(rows.shape[1], self.columns[name], rows.device)
        # With gradient checkpointing the layer runs again on the way back, but only the first output's
        # gradient is ever made: nothing counts twice.
        output.register_hook(partial(_came_back, found, name, seen))

    def _projection(self, width: int, ranks: int, device: torch.device) -> torch.Tensor:
        """Ω: orthogonal columns, [width, columns], such that G Ω is as large as G on average."""
        columns = min(width, ranks + OVERSAMPLED)
        if (width, columns) not in self._projections:
            generator = torch.Generator().manual_seed(self.seed)
            if columns == width:
                made = torch.eye(width)
            else:
                made, _ = torch.linalg.qr(torch.randn(width, columns, generator=generator))
                made = made * math.sqrt(width / columns)
            self._projections[width, columns] = made.to(device)
        return self._projections[width, columns]


def _came_back(found: dict[str, torch.Tensor], name: str, seen: torch.Tensor, gradient: torch.Tensor) -> None:
    with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
        sketch = gradient.flatten(0, -2).float().T @ seen
        found[name] = sketch if name not in found else found[name] + sketch


def cross_fitted(first: torch.Tensor, second: torch.Tensor) -> tuple[float, ...]:
    """Squared singular values of what two noisy measurements of a matrix have in common, not rising.

    Each one's directions are valued by the other, and the two answers averaged; negative ones are 0.
    """
    values = (_valued(first, second) + _valued(second, first)) / 2
    return tuple(values.clamp(min=0).sort(descending=True).values.tolist())


def _valued(finder: torch.Tensor, judge: torch.Tensor) -> torch.Tensor:
    left, sizes, right = torch.linalg.svd(finder, full_matrices=False)
    values: torch.Tensor = sizes * ((left.T @ judge) * right).sum(dim=1)
    return values
