"""Gives LoRA layers more rank in the middle of a training without changing what the model says.

New rows of A are random and new columns of B zero, so B·A stays what it is. The old directions are not
touched: a rotation (a singular value decomposition of B·A) would also keep the product, but neither what an
optimizer remembers of each number nor temporal kernels, which belong to one direction each. Alpha stays, so
that a layer learns as fast at every rank: the scale falls as the rank rises, and B is multiplied by what is
lost. All by PEFT's public attributes, so the result is an ordinary adapter with a rank per layer.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from peft.tuners.lora import LoraLayer

from qlora_engine.adapters.ranks.moments import grown_state
from schemas.training import Hyperparameters

ADAPTER = "default"
PREFIX = "base_model.model."
SAVED_A = ".lora_A.weight"


def adapted_layers(model: Any) -> dict[str, Any]:
    """PEFT's LoRA layers by the name of the layer they are beside, in the model's order."""
    return {
        name.removeprefix(PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A
    }


def ranks_of(model: Any) -> dict[str, int]:
    """The present rank of every adapted layer."""
    return {name: layer.r[ADAPTER] for name, layer in adapted_layers(model).items()}


def ranks_in(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The rank of every layer whose weights are saved here, as PEFT names them."""
    return {
        name.removeprefix(PREFIX).removesuffix(SAVED_A): len(tensor)
        for name, tensor in weights.items()
        if name.endswith(SAVED_A)
    }


def rank_cost(layer: Any) -> int:
    """Parameters of one rank of this layer."""
    return sum(tensor.numel() // layer.r[ADAPTER] for _, tensor, _ in _tensors(layer))


@dataclass(frozen=True)
class Resizing:
    """Changes ranks of one training's model, and what its optimizer remembers along with them."""

    model: Any
    optimizer: torch.optim.Optimizer
    chosen: Hyperparameters
    alphas: Mapping[str, float]
    """By layer."""

    def grow(self, ranks: Mapping[str, int], step: int) -> None:
        """Raise layers to these ranks. No random generator of the training is used: new rows follow from the
        seed, the step and the layer's name.

        Raises:
            ValueError: a layer would get less than it has.
        """
        for name, layer in adapted_layers(self.model).items():
            more = ranks[name] - layer.r[ADAPTER]
            if more < 0:
                raise ValueError(f"{name} has rank {layer.r[ADAPTER]}, which cannot become {ranks[name]}")
            if more:
                seed = crc32(f"{self.chosen.seed}/{step}/{name}".encode())
                fresh = _fresh_rows(more, layer.in_features, seed)
                loss = self._scale(name, layer.r[ADAPTER]) / self._scale(name, ranks[name])
                for module, old, along in list(_tensors(layer)):
                    by = loss if module is layer.lora_B[ADAPTER] else 1.0
                    added = fresh if module is layer.lora_A[ADAPTER] else _zeros(old, along, more)
                    grown = torch.cat([old.detach() * by, added.to(old.device, old.dtype)], dim=along)
                    self._replace(module, old, grown, grown_state(self.optimizer, old, along, more, 1 / by))
                self._describe(name, layer, ranks[name])

    def shape(self, ranks: Mapping[str, int]) -> None:
        """Give layers the shapes of these ranks, with no content: saved tensors are about to be put in."""
        for name, layer in adapted_layers(self.model).items():
            if ranks[name] == layer.r[ADAPTER]:
                continue
            for module, old, along in list(_tensors(layer)):
                size = list(old.shape)
                size[along] = ranks[name]
                self._replace(module, old, old.new_zeros(size), {})
            self._describe(name, layer, ranks[name])

    def _replace(self, module: Any, old: torch.nn.Parameter, tensor: torch.Tensor, state: Any) -> None:
        new = torch.nn.Parameter(tensor.contiguous(), requires_grad=old.requires_grad)
        module.weight = new
        for group in self.optimizer.param_groups:
            group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
        self.optimizer.state.pop(old, None)
        if state:
            self.optimizer.state[new] = state

    def _describe(self, name: str, layer: Any, rank: int) -> None:
        layer.lora_A[ADAPTER].out_features = layer.lora_B[ADAPTER].in_features = rank
        layer.r[ADAPTER] = rank
        layer.scaling[ADAPTER] = self._scale(name, rank)
        self.model.peft_config[ADAPTER].rank_pattern[name] = rank

    def _scale(self, name: str, rank: int) -> float:
        """As PEFT computes it when the adapter is loaded again, to the last bit."""
        return self.alphas[name] / (math.sqrt(rank) if self.chosen.rslora else rank)


def _tensors(layer: Any) -> Iterator[tuple[Any, torch.nn.Parameter, int]]:
    """What has one slice per rank: the module that holds it, the parameter, and the dimension."""
    yield layer.lora_A[ADAPTER], layer.lora_A[ADAPTER].weight, 0
    yield layer.lora_B[ADAPTER], layer.lora_B[ADAPTER].weight, 1
    if ADAPTER in (kernels := getattr(layer, "lora_temporal", {})):
        yield kernels[ADAPTER], kernels[ADAPTER].weight, 1


def _fresh_rows(rows: int, width: int, seed: int) -> torch.Tensor:
    """Rows of A as PEFT's default begins them, [rows, width], on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, width, generator=generator) * 2 - 1) / math.sqrt(width)


def _zeros(like: torch.Tensor, along: int, more: int) -> torch.Tensor:
    size = list(like.shape)
    size[along] = more
    return like.new_zeros(size)
