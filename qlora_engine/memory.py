"""How much memory this process may use, and how much it has needed at most."""

import resource
from pathlib import Path

import psutil
import torch


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
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
