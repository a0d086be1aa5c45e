"""How much memory this process may use, and how much it has needed at most."""

import ctypes
import gc
import resource
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import torch

T = TypeVar("T")
UNTYPED = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a plain RuntimeError says of a lack of memory."""
RETURNED_BYTES = 1 << 17
"""From this size on, a block is returned as soon as it is freed: where glibc begins, before it learns.

At 1 MiB, the heap was seen to hold 80 MiB of gaps at the peak of 700.
"""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
_returning: list[Callable[[int], int]] = []
"""malloc_trim(3), once memory is scarce: it is the process's, as the C library's heap is."""


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


def free_memory_bytes(device: torch.device) -> int:
    """What this process may still take, besides what it already holds."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    used = psutil.Process().memory_info().rss
    return min(psutil.virtual_memory().available, usable_memory_bytes() - used)


def held_memory_bytes(device: torch.device) -> int:
    """What this process holds now, counted as `peak_memory_bytes` does."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def return_memory_at_once() -> None:
    """Let freed tensors go back to the system, for a fifth more time; where memory is scarce.

    By default glibc keeps what was freed in blocks of up to 32 MiB for later, and blocks of ever new sizes
    do not fit into it: a process was seen to hold four times what its tensors took.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, RETURNED_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, RETURNED_BYTES)
        _returning[:] = [libc.malloc_trim]
    return_what_is_free()


def return_what_is_free() -> None:
    """Where memory is scarce, what lies free between small blocks too; between two steps.

    Each step leaves some, in other places than the next one looks for it: the second step of a training was
    seen to hold 50 MiB more than the first.
    """
    for trim in _returning:
        trim(0)


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
