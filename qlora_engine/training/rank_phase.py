"""Rank allocation in the life of one training: what is measured, what is decided, what is told."""

from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from qlora_engine.adapters.ranks.allocation import Layer, allocate
from qlora_engine.adapters.ranks.resize import Resizing, adapted_layers, rank_cost, ranks_of
from qlora_engine.adapters.ranks.rounds import Rounds
from qlora_engine.adapters.ranks.sensitivity import Sketches
from qlora_engine.training.distributed import ALONE, World
from qlora_engine.training.keepsakes import Keepsakes
from qlora_engine.updates import RankChanged
from schemas.adapters import Modality, RankAllocation
from schemas.events.job import MOST_RANKS_TOLD, LayerRank, RankTrial

HIGHEST = 4
"""Times the rank that was asked for: the most that a layer gets, unless told otherwise."""


def rank_phase(
    parts: Mapping[str, Modality],
    resizing: Resizing,
    rounds: Rounds,
    keepsakes: Keepsakes,
    world: World = ALONE,
) -> "RankPhase":
    """For a model whose layers have the floor rank now; `parts` has the modality of every adapted one."""
    chosen = resizing.chosen
    wish = chosen.rank_allocation
    assert wish is not None  # noqa: S101 - else there are no rounds
    most = wish.max_rank or HIGHEST * chosen.rank
    layers = adapted_layers(resizing.model)
    caps = {
        name: max(wish.floor_rank, min(most, layer.in_features, layer.out_features))
        for name, layer in layers.items()
    }
    sketches = Sketches(
        layers,
        {name: cap - wish.floor_rank for name, cap in caps.items()},
        chosen.seed,
        keepsakes.tensors,
        world.sum_named,
    )
    costs = {name: rank_cost(layer) for name, layer in layers.items()}
    return RankPhase(resizing, rounds, wish, chosen.rank, parts, costs, caps, sketches)


@dataclass(frozen=True)
class RankPhase:
    """Holds nothing that a checkpoint would miss: ranks are the model's, measurements are keepsakes."""

    resizing: Resizing
    rounds: Rounds
    wish: RankAllocation
    rank: int
    """Of every layer, had nothing been allocated."""
    parts: Mapping[str, Modality]
    costs: Mapping[str, int]
    """Parameters of one rank, by layer."""
    caps: Mapping[str, int]
    sketches: Sketches

    def watching(self, step: int) -> AbstractContextManager[None]:
        """Backward passes of the step of this number run inside."""
        half = self.rounds.half(step)
        if half is None or not self._has_room(self.rounds.count):
            return nullcontext()
        return self.sketches.watching(half)

    def due(self, step: int) -> bool:
        """Whether ranks are given out after `step` steps."""
        number = self.rounds.after(step)
        return number is not None and self._has_room(number)

    def tries_both(self, step: int) -> bool:
        """Whether even ranks are to be tried, too. The first round decides for all."""
        return self.wish.gate and self.rounds.after(step) == 1

    def even(self, step: int) -> dict[str, int]:
        """What every layer gets of this round where nothing is known."""
        number = self.rounds.after(step)
        assert number is not None  # noqa: S101 - it is `due`
        return dict.fromkeys(self.parts, self.rounds.even_rank(number))

    def uniform(self) -> dict[str, int]:
        """Every layer at the rank that was asked for."""
        return dict.fromkeys(self.parts, self.rank)

    def allocated(self, step: int) -> dict[str, int]:
        """What the measured gradients give every layer, at no more parameters than `even` takes."""
        layers, even = self._layers(), self.even(step)
        floors: Counter[Modality] = Counter()
        for name, layer in layers.items():
            floors[layer.part] += layer.cost * even[name]
        kept = {part: int(self.wish.part_floor * whole) for part, whole in floors.items()}
        return allocate(layers, floors.total(), kept)

    def grow(self, ranks: Mapping[str, int], step: int) -> None:
        """Give the layers these ranks; what was measured for it is forgotten."""
        self.resizing.grow(ranks, step)
        self.sketches.forget()

    def told(self, before: Mapping[str, int], step: int, trial: RankTrial | None) -> RankChanged:
        """What changed since the layers had the ranks `before`."""
        after = ranks_of(self.resizing.model)
        changed_most = sorted(self.parts, key=lambda name: (-abs(after[name] - before[name]), name))
        listed = set(changed_most[:MOST_RANKS_TOLD])
        return RankChanged(
            step=step,
            kept="allocated" if trial is None or trial.passed else "uniform",
            trial=trial,
            parameters_before=self._parameters(before),
            parameters_after=self._parameters(after),
            layers=tuple(
                LayerRank(layer=name, part=part, before=before[name], after=after[name])
                for name, part in self.parts.items()
                if name in listed
            ),
        )

    def _layers(self) -> dict[str, Layer]:
        gains, ranks = self.sketches.gains(), ranks_of(self.resizing.model)
        return {
            name: Layer(part, self.costs[name], ranks[name], self.caps[name], gains[name])
            for name, part in self.parts.items()
        }

    def _parameters(self, ranks: Mapping[str, int]) -> int:
        return sum(cost * ranks[name] for name, cost in self.costs.items())

    def _has_room(self, number: int) -> bool:
        """Not after even ranks were kept: they take everything at once."""
        budget = sum(self.costs.values()) * self.rounds.even_rank(number)
        return budget - self._parameters(ranks_of(self.resizing.model)) >= min(self.costs.values())
