"""An optimizer step that is taken or not, but never by half: memory may run out in the middle of one.

The parameters are updated slice by slice. Each slice is copied before, together with its moments, and put
back if it fails; what is done is not done again. Every optimizer we use treats each parameter by itself, so
the numbers do not depend on the slices.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from qlora_engine.memory import Exhausted, tried


def step_by_slices(
    optimizer: torch.optim.Optimizer, slice_bytes: Callable[[], int], relieve: Callable[[Exhausted], None]
) -> None:
    """Take one step.

    Args:
        slice_bytes: of parameters to update at once; asked before each slice.
        relieve: called where memory did not suffice; raises when nothing can be done.
    """
    waiting = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    gradients = {parameter: parameter.grad for parameter in waiting}
    try:
        for parameter in waiting:
            parameter.grad = None
        while waiting:
            count = _fitting(waiting, slice_bytes())
            chosen = {parameter: gradients[parameter] for parameter in waiting[:count]}
            found = tried(partial(_step, optimizer, chosen))
            if isinstance(found, Exhausted):
                relieve(found)
            else:
                del waiting[:count]
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def _fitting(parameters: list[torch.nn.Parameter], limit: int) -> int:
    """How many come next: at least one."""
    taken = 0
    for count, parameter in enumerate(parameters):
        taken += parameter.numel() * parameter.element_size()
        if taken > limit and count > 0:
            return count
    return len(parameters)


def _step(optimizer: torch.optim.Optimizer, gradients: dict[torch.nn.Parameter, torch.Tensor | None]) -> None:
    kept = [_Kept.of(optimizer, parameter) for parameter in gradients]
    with _shown(gradients):
        try:
            optimizer.step()
        except BaseException:
            for each in kept:
                each.put_back(optimizer)
            raise


@contextmanager
def _shown(gradients: dict[torch.nn.Parameter, torch.Tensor | None]) -> Iterator[None]:
    """An optimizer passes over parameters without a gradient."""
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    try:
        yield
    finally:
        for parameter in gradients:
            parameter.grad = None


@dataclass(frozen=True)
class _Kept:
    """A parameter and its moments as they were."""

    parameter: torch.nn.Parameter
    value: torch.Tensor
    state: dict[str, Any]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> "_Kept":
        state = optimizer.state.get(parameter, {})
        return cls(
            parameter,
            parameter.detach().clone(),
            {key: value.clone() if torch.is_tensor(value) else value for key, value in state.items()},
        )

    def put_back(self, optimizer: torch.optim.Optimizer) -> None:
        """In place, so that nothing is allocated and paged moments stay paged."""
        with torch.no_grad():
            self.parameter.copy_(self.value)
            if not self.state:  # nothing was there: the next step begins it anew
                optimizer.state.pop(self.parameter, None)
                return
            state = optimizer.state[self.parameter]
            for key in state.keys() - self.state.keys():
                del state[key]
            for key, value in self.state.items():
                if torch.is_tensor(value) and torch.is_tensor(state.get(key)):
                    state[key].copy_(value)
                else:
                    state[key] = value
