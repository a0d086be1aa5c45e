"""What the last bits of a training's numbers depend on, besides what its owner chose."""

import platform
from importlib.metadata import version

import torch

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "av")


def environment(device: torch.device) -> dict[str, str]:
    """Versions and the kind of device, by name."""
    found = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    if device.type == "cuda":
        return found | {"device": torch.cuda.get_device_name(device)}
    return found | {
        "device": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }


def system() -> dict[str, str]:
    """Kind of machine and operating system; not its name."""
    return {"system": platform.platform()}
