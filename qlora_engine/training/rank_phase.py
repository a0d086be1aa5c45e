"""Rank allocation in the life of one training: what is measured, what is decided, what is told."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from qlora_engine.adapters.ranks.allocation import Layer, allocate
from qlora_engine.adapters.ranks.credit import Credits
from qlora_engine.adapters.ranks.resize import Resizing, adapted_layers, rank_cost, ranks_of
from qlora_engine.adapters.ranks.rounds import Rounds
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
) -> "RankPhase":
    """For a model whose layers have the floor rank now; `parts` has the modality of every adapted one."""
    chosen = resizing.chosen
    wish = chosen.rank_allocation
    assert wish is not None  # noqa: S101 - else there are no rounds
    most = wish.max_rank or HIGHEST * chosen.rank
    layers = adapted_layers(resizing.model)
    caps = {
        name: max(rounds.floor_rank, min(most, layer.in_features, layer.out_features))
        for name, layer in layers.items()
    }
    costs = {name: rank_cost(layer) for name, layer in layers.items()}
    return RankPhase(
        resizing, rounds, wish, chosen.rank, parts, costs, caps, Credits(resizing.model, keepsakes.tensors)
    )


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
    credits: Credits

    def watches(self, step: int) -> bool:
        """Whether the step of this number counts for or against a layer."""
        return self.rounds.watches(step) and self._has_room(self.rounds.count)

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
        """What every layer gets by what its part has done, at no more parameters than `even` takes."""
        layers, even = self._layers(), self.even(step)
        floors: Counter[Modality] = Counter()
        for name, layer in layers.items():
            floors[layer.part] += layer.cost * even[name]
        kept = {part: int(self.wish.part_floor * whole) for part, whole in floors.items()}
        return allocate(layers, floors.total(), kept)

    def grow(self, ranks: Mapping[str, int], step: int) -> None:
        """Give the layers these ranks; what was measured for it is forgotten."""
        self.resizing.grow(ranks, step)
        self.credits.forget()

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
        """Layers of a part share its credit by their size: single ones are measured too noisily."""
        ranks = ranks_of(self.resizing.model)
        credit: defaultdict[Modality, float] = defaultdict(float)
        size: Counter[Modality] = Counter()
        for name, part in self.parts.items():
            credit[part] += self.credits.of(name)
            size[part] += self.costs[name]
        return {
            name: Layer(
                part,
                cost := self.costs[name],
                ranks[name],
                self.caps[name],
                max(0.0, credit[part]) * cost / size[part],
            )
            for name, part in self.parts.items()
        }

    def _parameters(self, ranks: Mapping[str, int]) -> int:
        return sum(cost * ranks[name] for name, cost in self.costs.items())

    def _has_room(self, number: int) -> bool:
        """Not after even ranks were kept: they take everything at once."""
        budget = sum(self.costs.values()) * self.rounds.even_rank(number)
        return budget - self._parameters(ranks_of(self.resizing.model)) >= min(self.costs.values())
