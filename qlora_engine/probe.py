"""Finds out what this machine can do by doing it: quantise, multiply, and take an optimizer step in 4 bits.

That the libraries import proves nothing; on some boards only the first kernel launch fails.
"""

import sys
import traceback
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch
from bitsandbytes.nn.modules import Linear4bit

from qlora_engine.device import best_device, compute_dtype, device_name, is_jetson
from qlora_engine.memory import usable_memory_bytes
from qlora_engine.updates import ProbeResult
from schemas.events.agent import AgentProfile, Capabilities

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "kinora")
WIDTH = 128


def probe() -> ProbeResult:
    """What this node has, measured."""
    device = best_device()
    works = four_bit_step(device)
    cuda = device.type == "cuda"
    profile: AgentProfile = "cpu"
    if cuda:
        profile = "jetson" if is_jetson() else "cuda"
    return ProbeResult(
        capabilities=Capabilities(
            profile=profile,
            device=device_name(device),
            cpu_cores=psutil.cpu_count() or 1,
            memory_bytes=usable_memory_bytes(),
            gpu_memory_bytes=torch.cuda.get_device_properties(device).total_memory if cuda else 0,
            gpus=torch.cuda.device_count() if cuda else 0,
            four_bit_kernel=works,
            versions=_versions(),
        )
    )


def four_bit_step(device: torch.device) -> bool:
    """True when a quantised layer with a low-rank update trains on `device`; if not, stderr says why."""
    try:
        dtype = compute_dtype(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            layer = Linear4bit(  # type: ignore[no-untyped-call]
                WIDTH, WIDTH, compute_dtype=dtype, compress_statistics=True, quant_type="nf4"
            ).to(device)
            layer.support_avx512bf16_for_cpu = False
            down = torch.randn(WIDTH, 8, device=device, requires_grad=True)
            up = torch.zeros(8, WIDTH, device=device, requires_grad=True)
            optimizer = torch.optim.AdamW([down, up], lr=1e-2)
            inputs = torch.randn(16, WIDTH, device=device)
            losses = []
            for _ in range(3):
                outputs = layer(inputs.to(dtype)).float() + inputs @ down @ up
                loss = outputs.square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
    except (RuntimeError, OSError, NotImplementedError, AttributeError, AssertionError):
        traceback.print_exc(file=sys.stderr)
        return False
    return losses[-1] < losses[0]


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
