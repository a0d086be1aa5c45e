"""How much memory this process may use, and how much it has needed at most."""

import gc
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import torch

T = TypeVar("T")
UNTYPED = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a plain RuntimeError says of a lack of memory."""


def peak_memory_bytes(device: torch.device) -> int:
    """On CUDA what the allocator held at most, else the process's largest resident size."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def usable_memory_bytes() -> int:
    """The machine's memory or the limit of this process's control group, whichever is less."""
    total = psutil.virtual_memory().total
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(name).read_text("ascii").strip()
        except OSError:
            continue
        if limit.isdigit():
            return min(total, int(limit))
    return total


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice; on a CPU, PyTorch raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in UNTYPED)


@dataclass(frozen=True)
class Exhausted:
    """Memory did not suffice; what had been taken is free again."""

    message: str


def tried(work: Callable[[], T]) -> T | Exhausted:
    """What `work` gives; other errors than a lack of memory pass."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).partition("\n")[0]
    # Only here, where the error and with it the tensors of its frames are gone.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Exhausted(message)
