"""One training on several processes of a node: what they share, and where they have to agree.

Every process has the whole model (its base is frozen, its adapter small), computes its part of each optimizer
step, and adds up gradients with the others before anyone takes the step: so all of them hold the same adapter
at all times, bit for bit. What is summed is divided by the supervised tokens of all, so the numbers are those
of one process. Only the first process writes files and tells of progress.

Everything here that says "all" has to be called by every process, equally often and in the same order.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeVar, cast

import torch
import torch.distributed as distributed
from torch._C._distributed_c10d import FileStore

from qlora_engine.data.dealing import Part, dealt
from qlora_engine.errors import PeerLost
from qlora_engine.memory import is_out_of_memory
from qlora_engine.stopping import Mode, StopWish
from qlora_engine.updates import Logged, Update
from schemas.training import Hyperparameters

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: as long as a slow step or a slow save may take. That one died is
seen by who started them, at once."""
FROM_ALL = ("alive", "oom_recovered", "engine_failed")
"""What every process tells; anything else is the first one's to tell."""
EVIDENCE = "non_finite"
"""… but what a process has found out about its own rows."""
BUCKET = 1 << 24
"""Gradient elements that are added up at once: 64 MiB in float32."""
Operation = Literal["max", "min", "sum"]
_OPERATIONS = {
    "max": distributed.ReduceOp.MAX,
    "min": distributed.ReduceOp.MIN,
    "sum": distributed.ReduceOp.SUM,
}
_MODES: tuple[Mode | None, ...] = (None, "graceful", "immediate")
Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """This process among all that share a training; a world of one needs no others and agrees with itself."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether it is this process that writes files and speaks."""
        return self.rank == 0

    def share(self, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> tuple[Part, ...]:
        """What of a step this process computes; see `dealing.dealt`."""
        return dealt(rows, lengths, self.size)[self.rank]

    def slice(self, items: Sequence[Item]) -> list[Item]:
        """Every `size`-th item, beginning with this process's own."""
        return list(items[self.rank :: self.size])

    # ---- called by all -----------------------------------------------------------------------------------

    def agree(self, value: float, operation: Operation) -> float:
        """The largest, smallest or summed value of all."""
        return self.combine([value], operation)[0]

    def combine(self, values: Sequence[float], operation: Operation) -> list[float]:
        """As `agree`, for several values at once; all give equally many."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        with _together():
            distributed.all_reduce(shared, _OPERATIONS[operation])
        return cast(list[float], shared.tolist())

    def asked(self, stop: StopWish) -> Mode | None:
        """The strongest wish that any of them has heard of."""
        return _MODES[int(self.agree(_MODES.index(stop.mode), "max"))]

    def gather(self, item: Item) -> list[Item]:
        """What all have, by rank. The items are pickled: between processes of one training only."""
        if self.size == 1:
            return [item]
        found: list[Item | None] = [None] * self.size
        with _together():
            distributed.all_gather_object(found, item)
        return cast(list[Item], found)

    def once(self, make: Callable[[], Item]) -> Item:
        """What `make` gives to the first process, which alone calls it."""
        if self.size == 1:
            return make()
        told: list[Item | None] = [make() if self.first else None]
        with _together():
            distributed.broadcast_object_list(told, src=0)
        return cast(Item, told[0])

    def sum_named(self, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors of the same name added up; who lacks one adds nothing to it."""
        if self.size == 1:
            return found
        kinds: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for named in self.gather({name: (tensor.shape, tensor.dtype) for name, tensor in found.items()}):
            kinds |= named
        sums = {}
        for name in sorted(kinds):
            shape, dtype = kinds[name]
            shared = found[name].cpu() if name in found else torch.zeros(shape, dtype=dtype)
            with _together():
                distributed.all_reduce(shared)
            sums[name] = shared.to(found[name].device) if name in found else shared
        return sums

    def leave_it_to_the_first(self) -> None:
        """Where all have found the same error, the first one tells of it; the others wait for their end.

        Raises:
            PeerLost: in every other process.
        """
        if not self.first:
            self.agree(0, "max")

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of all.

        A parameter that no process used keeps no gradient, so that the optimizer passes over it, as it does
        in one process; who did not use it, though others did, takes part with zeros.
        """
        if self.size == 1:
            return
        trained = list(parameters)
        used = self.combine([float(parameter.grad is not None) for parameter in trained], "sum")
        for bucket in _buckets([trained[place] for place, users in enumerate(used) if users]):
            gradients = [
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for parameter in bucket
            ]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            with _together():
                distributed.all_reduce(flat)
            sums = torch.split(flat, [gradient.numel() for gradient in gradients])
            for parameter, gradient, total in zip(bucket, gradients, sums, strict=True):
                parameter.grad = gradient.copy_(total.view_as(gradient))


ALONE = World()


def sow(seed: int, step: int, world: World) -> None:
    """Random numbers of this process alone from `step` on, so that no two of them drop the same units."""
    name = f"{seed}:{step}:{world.rank}:{world.size}"
    torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]))


def other_processes(before: int, now: int) -> Logged:
    """What people should know who go on with another number of processes."""
    return Logged(
        level="info",
        code="other_processes",
        message=f"The checkpoint is of {before} {'process' if before == 1 else 'processes'}, this attempt has"
        f" {now}: data, weights and schedule go on exactly, dropout with other random numbers",
    )


def idle_processes(hyperparameters: Hyperparameters, processes: int) -> Logged | None:
    """What people should know whose steps are too small to share."""
    if hyperparameters.tokens_per_step is not None or hyperparameters.batch_size >= processes:
        return None
    return Logged(
        level="warning",
        code="idle_processes",
        message=f"batch_size {hyperparameters.batch_size} leaves {processes - hyperparameters.batch_size} of"
        f" {processes} processes idle; raise it to a multiple of {processes}, or lower processes",
    )


def told(world: World, update: Update) -> bool:
    """Whether it is for this process to tell people of this, and not the first one's to tell for all."""
    evidence = isinstance(update, Logged) and update.code.startswith(EVIDENCE)
    return world.first or update.kind in FROM_ALL or evidence


def on_loopback() -> None:
    """Let processes of this node talk to each other only here; call before they meet."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")


@contextmanager
def joined(world: World, meeting_point: Path | None, device: torch.device) -> Iterator[World]:
    """Meet the others; `meeting_point` is a file that does not exist yet, the same for all.

    Without one they meet where the environment says (MASTER_ADDR, MASTER_PORT), as torchrun wants it. Numbers
    and objects travel by gloo, gradients on CUDA devices by NCCL.

    Raises:
        PeerLost: the others do not come.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _together():
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=None if meeting_point is None else FileStore(str(meeting_point), world.size),
            rank=world.rank,
            world_size=world.size,
            timeout=PATIENCE,
        )
    yield world
    # Not after a failure: it would wait for those that are gone.
    distributed.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and NCCL raise where another process is gone
        if is_out_of_memory(error):
            raise
        raise PeerLost(
            f"a process that shares this training is gone or hangs ({error}); the next attempt goes on from"
            " the last stored checkpoint"
        ) from error


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Neighbours of one kind, as many as fit."""
    bucket: list[torch.nn.Parameter] = []
    elements = 0
    for parameter in parameters:
        alike = not bucket or (parameter.dtype, parameter.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not alike or elements + parameter.numel() > BUCKET):
            yield bucket
            bucket, elements = [], 0
        bucket.append(parameter)
        elements += parameter.numel()
    if bucket:
        yield bucket
