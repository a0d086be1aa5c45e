"""LoRA beside a 4-bit layer, added to that layer's output in one operation while training.

PEFT copies the layer's output, scales the update, and adds both: three passes over a tensor as wide as the
layer, and one more on the way back. One matrix product that accumulates does the same, up to the last bit
of a sum. On evaluation, and for everything but ordinary LoRA, PEFT's own arithmetic is left alone.
"""

from typing import Any

import torch
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit


class FusedLinear4bit(LoraLinear4bit):  # type: ignore[misc]
    """PEFT's layer, whose parameters, names and files are the same."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        adapter = None if args or kwargs else self._fusible(x)
        if adapter is None:
            found: torch.Tensor = super().forward(x, *args, **kwargs)
            return found
        result: torch.Tensor = self.base_layer(x)
        hidden = self.lora_A[adapter](self.lora_dropout[adapter](x)).to(result.dtype).flatten(0, -2)
        outward = self.lora_B[adapter].weight.to(result.dtype)
        scale = self.scaling[adapter]
        with torch.autocast(x.device.type, enabled=False):  # the sum is kept in what the layer gave
            return torch.addmm(result.flatten(0, -2), hidden, outward.T, alpha=scale).view_as(result)

    def _fusible(self, x: torch.Tensor) -> str | None:
        """The one adapter that is trained, if it is ordinary LoRA in the numbers that it is computed in."""
        if not (self.training and torch.is_grad_enabled()) or self.disable_adapters or self.merged:
            return None
        names = [name for name in self.active_adapters if name in self.lora_A]
        if len(names) != 1 or names[0] in self.lora_variant or self.lora_B[names[0]].bias is not None:
            return None
        cast = torch.is_autocast_enabled(x.device.type)
        return names[0] if cast or x.dtype == self.lora_A[names[0]].weight.dtype else None
