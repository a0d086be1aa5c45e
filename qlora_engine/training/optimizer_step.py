"""Optimizer steps that are taken or not, but never by half: memory may run out in the middle of one.

The parameters are updated slice by slice. Each slice is copied before, together with its moments, and put
back if it fails; what is done is not done again. Every optimizer we use treats each parameter by itself, so
the numbers do not depend on the slices.

Copying is cheap beside a step, as long as it is not done tensor by tensor: many of them share a flat copy,
and what is to be copied is looked up once and not at every step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from qlora_engine.memory import Exhausted, tried


@dataclass
class RepeatableSteps:
    """Takes the steps of an optimizer."""

    optimizer: torch.optim.Optimizer
    _slices: dict[int, "_Slice"] = field(default_factory=dict)
    """By the place of their first parameter: as they were when the last step was taken."""

    def take(
        self,
        slice_bytes: Callable[[], int],
        relieve: Callable[[Exhausted], None],
        falls: dict[torch.nn.Parameter, float] | None = None,
    ) -> None:
        """Take one step.

        Args:
            slice_bytes: of parameters to update at once; asked before each slice.
            relieve: called where memory did not suffice; raises when nothing can be done.
            falls: filled with how much each parameter's movement lowers the loss, to first order.
        """
        parameters = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        gradients = [parameter.grad for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.grad = None
            done, taken = 0, set()
            while done < len(parameters):
                end = done + _fitting(parameters[done:], slice_bytes())
                chosen = parameters[done:end]
                found = tried(
                    partial(self._step, done, chosen, gradients[done:end], measured=falls is not None)
                )
                if isinstance(found, Exhausted):
                    relieve(found)
                else:
                    taken.add(done)
                    done = end
                    if falls is not None:
                        falls |= zip(chosen, found, strict=True)
            for place in self._slices.keys() - taken:  # of other sizes: it would hold moments that are gone
                del self._slices[place]
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient

    def _step(
        self,
        place: int,
        parameters: Sequence[torch.nn.Parameter],
        gradients: Sequence[torch.Tensor | None],
        *,
        measured: bool,
    ) -> list[float]:
        known = self._slices.get(place)
        if known is None or not known.holds(self.optimizer, parameters):
            self._slices.pop(place, None)
            known = self._slices[place] = _Slice.of(self.optimizer, parameters)
        states = {parameter: dict(self.optimizer.state.get(parameter, {})) for parameter in parameters}
        values = known.copied()
        before = [parameter.detach().clone() for parameter in parameters] if measured else []
        with _shown(parameters, gradients):
            try:
                self.optimizer.step()
                return [_fall(*each) for each in zip(before, parameters, strict=True)] if measured else []
            except BaseException:
                known.put_back(values)
                for parameter, state in states.items():
                    if state:
                        self.optimizer.state[parameter] = state
                    else:  # nothing was there: the next step begins it anew
                        self.optimizer.state.pop(parameter, None)
                raise


def _fall(before: torch.Tensor, parameter: torch.nn.Parameter) -> float:
    """Of the loss, by the parameter's movement: −g · Δθ."""
    assert parameter.grad is not None  # noqa: S101 - it was stepped by it
    return float(((before - parameter.detach()) * parameter.grad).sum(dtype=torch.float64))


def _fitting(tensors: Sequence[torch.Tensor], limit: int) -> int:
    """How many come next: at least one."""
    taken = 0
    for count, tensor in enumerate(tensors):
        taken += tensor.nbytes
        if taken > limit and count > 0:
            return count
    return len(tensors)


@contextmanager
def _shown(
    parameters: Sequence[torch.nn.Parameter], gradients: Sequence[torch.Tensor | None]
) -> Iterator[None]:
    """An optimizer passes over parameters without a gradient."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.grad = None


@dataclass(frozen=True)
class _Slice:
    """Parameters and the tensors that the optimizer holds of them, as flat views of their memory."""

    addresses: list[int]
    """Of their memory, which is not given to others as long as the views below exist."""
    kinds: list[list[torch.Tensor]]
    """Tensors of the same kind."""

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]) -> "_Slice":
        kinds: dict[tuple[torch.dtype, torch.device], dict[int, torch.Tensor]] = {}
        for tensor in _tensors(optimizer, parameters):
            # bitsandbytes shares tables between parameters: one of them is enough.
            kinds.setdefault((tensor.dtype, tensor.device), {})[tensor.data_ptr()] = tensor.detach().view(-1)
        return cls(_addresses(optimizer, parameters), [list(kind.values()) for kind in kinds.values()])

    def holds(self, optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]) -> bool:
        """Whether it is still what `of` would give."""
        return self.addresses == _addresses(optimizer, parameters)

    def copied(self) -> list[torch.Tensor]:
        """The present values."""
        return [torch.cat(tensors) for tensors in self.kinds]

    def put_back(self, values: Sequence[torch.Tensor]) -> None:
        """In place, so that nothing is allocated and paged moments stay paged."""
        for tensors, copied in zip(self.kinds, values, strict=True):
            parts = torch.split(copied, [tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part)


def _tensors(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]
) -> Iterator[torch.Tensor]:
    for parameter in parameters:
        yield parameter
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, torch.Tensor):
                yield value


def _addresses(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]) -> list[int]:
    return [tensor.data_ptr() for tensor in _tensors(optimizer, parameters)]
