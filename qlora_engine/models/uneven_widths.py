"""Makes bitsandbytes right on the CPU for widths that are no multiple of its block, and checks that it is.

Its CPU kernel (0.50.2) takes it for granted that no block of 64 numbers goes from one row of a weight to
the next. Where 16 divides the width and 64 does not, as in the 4304 of the larger SigLIP towers, it takes
another block's scale and says nothing: the weights are off by a quarter instead of a tenth.
"""

import math
from copy import copy
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as functional
from bitsandbytes.functional import QuantState, dequantize_4bit

USUAL_ERROR = 0.2
"""Of a product, relative. NF4 is 0.09 off for normally distributed weights and 0.15 for heavy tails."""
PROBES = 8


def make_exact(layer: Any) -> None:
    """Let this `Linear4bit` on the CPU dequantise whole blocks, whatever its width."""
    if layer.in_features % layer.weight.quant_state.blocksize:
        layer.forward = MethodType(_forward, layer)


def relative_error(layer: Any, weight: torch.Tensor) -> float:
    """How far the layer's products are from those of the `weight` that it was quantised from."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(PROBES, weight.shape[1], generator=generator)
    bias = None if layer.bias is None else layer.bias.float().cpu()
    with torch.no_grad():
        right = functional.linear(inputs, weight.float(), bias)
        given = layer(inputs.to(layer.weight.device, layer.compute_dtype)).float().cpu()
        return float((given - right).norm() / (functional.linear(inputs, weight.float()).norm() + 1e-12))


def _forward(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.to(inputs.dtype)
    product: torch.Tensor = _Product.apply(inputs, layer.weight)  # type: ignore[no-untyped-call]
    return product if bias is None else product + bias


class _Product(torch.autograd.Function):
    """Keeps the packed weight for the way back, not the dequantised one."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: Any) -> torch.Tensor:
        ctx.weight = weight
        return functional.linear(inputs, dequantized(weight).to(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ dequantized(ctx.weight).to(gradient.dtype), None


def dequantized(weight: Any) -> torch.Tensor:
    """What a 4-bit weight stands for, right for every width."""
    state: QuantState = weight.quant_state
    flat = copy(state)
    numbers = math.prod(state.shape)
    # One block a row; where the last one is short, a width of 1, which makes the library avoid the kernel.
    width = state.blocksize if numbers % state.blocksize == 0 else 1
    flat.shape = torch.Size((numbers // width, width))
    whole: torch.Tensor = dequantize_4bit(weight.data.view(-1, 1), flat)
    return whole.view(state.shape)
