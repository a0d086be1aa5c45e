"""How busy this node's devices are: its CPUs, and NVIDIA GPUs where their driver answers."""

import asyncio
from collections.abc import Callable

import psutil
import pynvml
import structlog

from trainer_agent.metrics import CONNECTED, MEMORY_TOTAL, MEMORY_USED, POWER, UTILISATION

log = structlog.get_logger()

_EVERY_SECONDS = 5.0


async def measure(connected: Callable[[], bool]) -> None:
    """Measure for ever, and whether the agent is `connected` beside it."""
    handles = await asyncio.to_thread(_gpus)
    psutil.cpu_percent()  # the first call only begins an interval
    while True:
        CONNECTED.set(connected())
        _measure_cpu()
        for number, handle in enumerate(handles):
            _measure_gpu(f"gpu:{number}", handle)
        await asyncio.sleep(_EVERY_SECONDS)


def _measure_cpu() -> None:
    memory = psutil.virtual_memory()
    UTILISATION.labels("cpu").set(psutil.cpu_percent() / 100)
    MEMORY_USED.labels("cpu").set(memory.total - memory.available)
    MEMORY_TOTAL.labels("cpu").set(memory.total)


def _gpus() -> list[object]:
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        log.info("no_gpu_measured", reason=str(error))
        return []


def _measure_gpu(device: str, handle: object) -> None:
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        MEMORY_USED.labels(device).set(memory.used)
        MEMORY_TOTAL.labels(device).set(memory.total)
        UTILISATION.labels(device).set(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        POWER.labels(device).set(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)
    except pynvml.NVMLError as error:
        log.debug("gpu_not_measured", device=device, reason=str(error))  # not every GPU measures everything
