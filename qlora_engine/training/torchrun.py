"""Training as one of the processes that torchrun has started, for those who run an engine by hand on a node.

Run: ``torchrun --standalone --nproc-per-node 2 -m qlora_engine --spec FILE``. A node's agent does not: it has
`launch`, whose processes end with it and open no port. The training is the same, bit for bit.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from qlora_engine.device import best_device
from qlora_engine.errors import ProcessesDiffer, TooFewDevices
from qlora_engine.imports import uncollected
from qlora_engine.stopping import StopWish
from qlora_engine.training.distributed import World, joined, on_loopback, told
from qlora_engine.updates import Update
from schemas.training import TrainingSpec


@dataclass(frozen=True)
class Seat:
    """What torchrun tells a process in its environment."""

    world: World
    on_this_node: int
    """Of the processes."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Seat":
        size = int(environment["WORLD_SIZE"])
        return cls(World(int(environment["RANK"]), size), int(environment.get("LOCAL_WORLD_SIZE", size)))

    def check(self, spec: TrainingSpec, devices: int) -> None:
        """
        Args:
            devices: CUDA devices of this node.

        Raises:
            ProcessesDiffer: torchrun has started others than the training can have.
            TooFewDevices: two processes would share a CUDA device.
        """
        size = self.world.size
        if self.on_this_node != size:
            raise ProcessesDiffer(
                f"torchrun has started {size} processes, {self.on_this_node} of them on this node; a training"
                " stays on one node: leave out --nnodes"
            )
        wanted = spec.hyperparameters.processes
        if wanted not in (None, size):
            raise ProcessesDiffer(
                f"processes is {wanted}, but torchrun has started {size}; leave processes out of the spec, or"
                f" say --nproc-per-node {wanted}"
            )
        if 0 < devices < size:
            raise TooFewDevices(
                f"torchrun has started {size} processes, but this node has {devices} CUDA devices; say"
                f" --nproc-per-node {devices}"
            )


def train_under_torchrun(
    spec: TrainingSpec, seat: Seat, emit: Callable[[Update], None], stop: StopWish
) -> None:
    """Run this process's part, which it tells of by its `voice`.

    A stop that one of them is asked for is a stop for all.

    Raises:
        EngineError: the training cannot go on.
    """
    seat.check(spec, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    device = best_device()
    if device.type == "cuda":
        device = torch.device("cuda", seat.world.rank)
    on_loopback()
    with joined(seat.world, None, device) as world:
        with uncollected():
            from qlora_engine.training.attempt import train  # heavy: it takes longer than to meet

        train(spec, emit, stop, device, world)


def voice(world: World, emit: Callable[[Update], None]) -> Callable[[Update], None]:
    """How a process speaks: the first one for all, any other on stderr of what it alone has met."""
    if world.first:
        return emit

    def aside(update: Update) -> None:
        if told(world, update) and update.kind != "alive":
            line = f"process {world.rank + 1} of {world.size}: {update.model_dump_json()}"
            print(line, file=sys.stderr)  # noqa: T201 - by hand: it is read

    return aside
