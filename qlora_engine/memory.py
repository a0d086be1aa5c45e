"""How much memory this process has needed at most."""

import resource

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """On CUDA what the allocator held at most, else the process's largest resident size."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
