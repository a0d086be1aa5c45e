"""Where PyTorch's random numbers stand, so that dropout can be drawn again."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RandomStates:
    """Of the CPU and, where the model is on one, of a CUDA device."""

    device: torch.device
    cpu: torch.Tensor
    cuda: torch.Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "RandomStates":
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(device, torch.get_rng_state(), cuda)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
