"""This machine, whether the service runs or not: Python, disk, the engine's kernels, the GPU's driver."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pynvml

from kinora.cli.output import size
from kinora.doctor.finding import Finding, bad, doubtful, fine
from qlora_engine.updates import UPDATE, EngineFailed, ProbeResult
from schemas.events.agent import Capabilities

_GIB = 2**30
_PROBE_SECONDS = 180


def python() -> Finding:
    return fine("python", ".".join(str(part) for part in sys.version_info[:3]))


def disk(folder: Path) -> Finding:
    """Where the data folder is, or will be."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{size(free)} free at {existing}"
    if free < _GIB:
        return bad("disk", detail, "free some space: the log and the object store need it to grow")
    if free < 5 * _GIB:
        return doubtful("disk", detail, "datasets and checkpoints soon fill this; free some space")
    return fine("disk", detail)


def engine() -> list[Finding]:
    """Runs the engine's probe: a real 4-bit kernel and an optimizer step."""
    try:
        capabilities = _probe()
    except _ProbeFailed as failure:
        return [bad("engine", str(failure), "reinstall: make install")]
    detail = f"{capabilities.profile} on {capabilities.device}, {size(capabilities.memory_bytes)} memory"
    if not capabilities.four_bit_kernel:
        remedy = "bitsandbytes has no working 4-bit kernel for this device; see docs/operations.md"
        return [bad("engine", detail, remedy), _gpu(capabilities)]
    return [fine("engine", detail + ", 4-bit kernel works"), _gpu(capabilities)]


class _ProbeFailed(Exception):
    """The engine did not say what it can do."""


def _probe() -> Capabilities:
    with tempfile.TemporaryFile() as updates:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "qlora_engine", "--probe", "--updates-fd", str(updates.fileno())],
                pass_fds=(updates.fileno(),),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_PROBE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise _ProbeFailed(f"the probe did not end within {_PROBE_SECONDS} s") from None
        updates.seek(0)
        for line in updates.read().splitlines():
            update = UPDATE.validate_json(line)
            if isinstance(update, ProbeResult):
                return update.capabilities
            if isinstance(update, EngineFailed):
                raise _ProbeFailed(f"{update.code}: {update.message}")
    raise _ProbeFailed(done.stderr.strip()[-300:] or f"the probe ended with code {done.returncode}")


def _gpu(capabilities: Capabilities) -> Finding:
    """A driver that sees a GPU which the engine does not use points at the wrong PyTorch."""
    try:
        pynvml.nvmlInit()
        names = [
            pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError:
        return fine("gpu", "no NVIDIA driver here; trainings use the CPU")
    if names and capabilities.profile == "cpu":
        return bad(
            "gpu",
            f"the driver shows {', '.join(map(str, names))}, and the engine trains on the CPU",
            "this PyTorch has no CUDA; reinstall the ordinary wheel: pip install --force-reinstall torch",
        )
    return fine("gpu", ", ".join(map(str, names)) or "the driver shows no GPU")
