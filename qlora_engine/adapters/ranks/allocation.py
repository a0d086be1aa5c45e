"""Deals a budget of parameters out to layers, where the next rank is predicted to help most. Free of torch.

A greedy knapsack: the best ratio of gain to parameters goes first. For gains that fall from rank to rank that
is optimal up to the last item (Dantzig 1957). One unit for all parts of a model, and a floor for each of
them: what the first gradients ask for is not all that a training needs.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.adapters import Modality


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
    gains: tuple[float, ...] = ()
    """Predicted fall of the loss by the next rank, the one after that …, not rising; none: 0."""


def parameters(layers: Mapping[str, Layer], ranks: Mapping[str, int]) -> int:
    """Parameters of these layers at these ranks."""
    return sum(layer.cost * ranks[name] for name, layer in layers.items())


def allocate(
    layers: Mapping[str, Layer], budget: int, floors: Mapping[Modality, int] | None = None
) -> dict[str, int]:
    """The rank of every layer, within `budget` parameters of all of them.

    Each part first gets ranks up to its floor, in parameters, as far as budget and caps allow; a floor is
    not exceeded for its own sake. What no layer has a gain for goes to the layers of the lowest rank.
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
    place = rank - layer.rank
    gain = layer.gains[place] if place < len(layer.gains) else 0.0
    return (-gain / layer.cost, rank, name)
