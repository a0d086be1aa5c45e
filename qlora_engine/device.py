"""Which device computes, in which precision, and what it is called."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch


def best_device() -> torch.device:
    """The CUDA device when there is one."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA; float32 on CPU, where it is exact and not slower for small models."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def device_name(device: torch.device) -> str:
    """For people: ``NVIDIA H200`` or ``AMD EPYC (2 cores)``."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{_processor()} ({psutil.cpu_count() or 1} cores)"


@contextmanager
def one_thread() -> Iterator[None]:
    """For models so small that threads only wait for one another, badly so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_jetson() -> bool:
    """True on NVIDIA's Tegra boards, whose GPU shares the main memory."""
    model = Path("/proc/device-tree/model")
    return Path("/etc/nv_tegra_release").exists() or (
        model.exists() and "Jetson" in model.read_text("utf-8", "replace")
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return "CPU"
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else "CPU"
