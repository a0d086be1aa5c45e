"""The one weight that a 4-bit layer and its adapter amount to, layer by layer.

The adapter was trained beside weights in 4 bits, so it is added to what those stand for, and not to the
original weights; a sum rounded to 4 bits again would lose it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from torch.nn import functional

from qlora_engine.adapters.ranks.resize import ADAPTER, adapted_layers
from qlora_engine.adapters.temporal import TemporalLayer, refuse_to_merge
from qlora_engine.models.uneven_widths import dequantized


def merged_weight(layer: Any) -> torch.Tensor:
    """[out, in] in float32, of PEFT's layer beside a 4-bit one.

    DoRA (arXiv:2402.09353) gives each row of the sum the length that it learnt.

    Raises:
        TemporalMergeRefused: the layer looks at other frames.
    """
    if isinstance(layer, TemporalLayer):
        refuse_to_merge(layer, ADAPTER)
    with torch.no_grad():
        weight = dequantized(layer.get_base_layer().weight).float()
        weight += layer.get_delta_weight(ADAPTER).to(weight.device, torch.float32)
        if ADAPTER in layer.lora_magnitude_vector:
            length = layer.lora_magnitude_vector[ADAPTER].weight.to(weight.device, torch.float32)
            weight *= (length / weight.norm(dim=1))[:, None]
    return weight


def whole_tensor(model: Any, name: str) -> torch.Tensor:
    """A tensor of the merged model by the name that it has without adapters; `model` is the base with them.

    Raises:
        TemporalMergeRefused: as `merged_weight`.
    """
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if hasattr(module, "get_base_layer"):
        if attribute == "weight":
            return merged_weight(module)
        module = module.get_base_layer()
    if isinstance(module, Linear4bit) and attribute == "weight":
        return dequantized(module.weight).float()
    tensor: torch.Tensor = getattr(module, attribute)
    return tensor.detach()


@contextmanager
def as_if_merged(model: Any) -> Iterator[None]:
    """Inside, every adapted layer computes with its one weight, which is made when it is needed."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.forward = partial(_product, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _product(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    return functional.linear(inputs, merged_weight(layer).to(inputs.dtype), layer.get_base_layer().bias)
