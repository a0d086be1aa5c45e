"""Deals a budget of parameters out to layers, where the next rank is predicted to help most. Free of torch.

What a rank adds becomes less with every further one: w · r^⅔ is taken to be the use of rank r to a layer of
worth w. The best ratio of gain to parameters goes first, which is optimal up to the last item (Dantzig 1957),
and ranks become proportional to the third power of what a parameter is worth: who is clearly ahead gets what
the floors leave, and those who are close share it. One unit for all parts of a model, and a floor for each of
them: what a training's beginning asks for is not all that it needs.
"""

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.adapters import Modality

RETURNS = 2 / 3


@dataclass(frozen=True)
class Layer:
    """An adapted layer as the allocator sees it."""

    part: Modality
    cost: int
    """Parameters of one rank."""
    rank: int
    """What it has, and keeps at least."""
    cap: int
    """The most it can get; not below `rank`."""
    worth: float = 0.0
    """What it has done for the loss; not negative."""

    def gain(self, rank: int) -> float:
        """Of one more than `rank`."""
        return self.worth * (math.pow(rank + 1, RETURNS) - math.pow(rank, RETURNS))


def parameters(layers: Mapping[str, Layer], ranks: Mapping[str, int]) -> int:
    """Parameters of these layers at these ranks."""
    return sum(layer.cost * ranks[name] for name, layer in layers.items())


def allocate(
    layers: Mapping[str, Layer], budget: int, floors: Mapping[Modality, int] | None = None
) -> dict[str, int]:
    """The rank of every layer, within `budget` parameters of all of them.

    Each part first gets ranks up to its floor, in parameters, as far as budget and caps allow; a floor is
    not exceeded for its own sake. Among layers that gain alike, the lowest rank comes first.
    """
    ranks = {name: layer.rank for name, layer in layers.items()}
    left = budget - parameters(layers, ranks)
    for part, floor in (floors or {}).items():
        inside = {name: layer for name, layer in layers.items() if layer.part == part}
        missing = min(left, floor - parameters(inside, ranks))
        left -= max(0, missing) - _deal(inside, ranks, missing)
    _deal(layers, ranks, left)
    return ranks


def _deal(layers: Mapping[str, Layer], ranks: dict[str, int], budget: int) -> int:
    """Raise `ranks` until nothing more fits; what is left of the budget, at least 0."""
    waiting = [_offer(name, layer, ranks[name]) for name, layer in layers.items()]
    heapq.heapify(waiting)
    left = max(0, budget)
    while waiting:
        _, _, name = heapq.heappop(waiting)
        layer = layers[name]
        if ranks[name] >= layer.cap or layer.cost > left:
            continue  # what is left only shrinks, so it need not be asked again
        ranks[name] += 1
        left -= layer.cost
        heapq.heappush(waiting, _offer(name, layer, ranks[name]))
    return left


def _offer(name: str, layer: Layer, rank: int) -> tuple[float, int, str]:
    """Sorts the best next rank first; among equals the lowest rank, and then by name."""
    return (-layer.gain(rank) / layer.cost, rank, name)
