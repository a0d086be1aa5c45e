"""What Adam remembers of a tensor that gets more rows or columns.

The old numbers keep their moments. New ones begin with a first moment of 0 and with the second moment that
the old ones beside them have on average: with 0 there, the first steps would be several times too large,
because the bias correction counts the tensor's steps and not the number's. Moments in 8 bits are decoded,
enlarged and encoded anew, which costs them at most one more rounding.
"""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

FIRST = ("exp_avg", "state1")
SECOND = ("exp_avg_sq", "state2")
"""As torch's and as bitsandbytes' optimizers name them."""
BLOCK = 256
"""Numbers that share a scale in bitsandbytes' 8-bit optimizers."""


def grown_state(
    optimizer: torch.optim.Optimizer,
    parameter: torch.nn.Parameter,
    along: int,
    more: int,
    gradient: float = 1.0,
) -> dict[str, Any]:
    """The state of `parameter` after `more` slices were added at the end of its dimension `along`.

    Empty where the optimizer has none yet. From here on its gradients are `gradient` times as large.
    """
    state = optimizer.state.get(parameter)
    if not state:
        return {}
    grown = dict(state)
    for names, filled in ((FIRST, False), (SECOND, True)):
        name = next(name for name in names if name in state)
        moments = _decoded(state, name, parameter.shape) * (gradient**2 if filled else gradient)
        mean = moments.mean(dim=along, keepdim=True) if filled else torch.zeros_like(moments[:1, :1])
        added = mean.expand([more if dim == along else size for dim, size in enumerate(moments.shape)])
        _encode(grown, name, torch.cat([moments, added], dim=along).contiguous(), optimizer)
    return grown


def _decoded(state: dict[str, Any], name: str, shape: torch.Size) -> torch.Tensor:
    moments: torch.Tensor = state[name]
    if moments.dtype != torch.uint8:
        return moments.view(shape)
    number = name[-1]
    return dequantize_blockwise(
        moments, absmax=state[f"absmax{number}"], code=state[f"qmap{number}"], blocksize=BLOCK
    ).view(shape)


def _encode(state: dict[str, Any], name: str, moments: torch.Tensor, optimizer: Any) -> None:
    """As the optimizer would have kept a tensor of this size from the beginning."""
    number = name[-1]
    if not _in_8_bits(optimizer, moments):
        state[name] = moments
        return
    if f"qmap{number}" not in state:  # it was too small for 8 bits before
        if not optimizer.name2qmap:
            optimizer.fill_qmap()
        table = "dynamic" if name in FIRST else "udynamic"
        state[f"qmap{number}"] = optimizer.name2qmap[table].to(moments.device)
    state[name], scales = quantize_blockwise(moments, code=state[f"qmap{number}"], blocksize=BLOCK)
    state[f"absmax{number}"] = scales.absmax


def _in_8_bits(optimizer: Any, moments: torch.Tensor) -> bool:
    chosen = getattr(optimizer, "args", None)
    return chosen is not None and chosen.optim_bits == 8 and moments.numel() >= chosen.min_8bit_size
