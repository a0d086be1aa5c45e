"""A model of Qwen2.5-7B's shape on a CUDA GPU: tokens per second, share of the GPU's arithmetic, peak memory.

Random weights in NF4, LoRA of rank 16 on all linear layers, texts of 256 to 4,096 tokens (log-uniform), by
the engine in packed rows of 8,192 tokens and by plain transformers + peft + bitsandbytes in as large batches
grouped by length; see `gpu_runs`. Both with and without gradient checkpointing: without it is faster, with it
fits into small GPUs, and like is compared with like. What does not fit is left out, and a line says so.
Arithmetic is counted as 4 FLOP per token and parameter that it meets, forward and back through a frozen base;
what checkpointing computes twice is not counted. Needs CUDA and 16 GB of disk. Without CUDA nothing is
measured, and --quick runs everything once on a small model, which shows that it runs.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.engine.speed_runs import Run
from benchmarks.installation import console, scratch
from benchmarks.report import Result

FASTER, MOST_GIB, LEAST_SHARE = 1.9, 12.0, 0.43
LIKE = {"kinora": "plain", "kinora_checkpointed": "plain_checkpointed"}
TITLES = {
    "kinora": "ours",
    "kinora_checkpointed": "ours, checkpointed",
    "plain": "plain",
    "plain_checkpointed": "plain, checkpointed",
}
NOMINAL = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""FLOP per second in bfloat16, dense, by NVIDIA's data sheets (SXM where there are several)."""
SAME_LOSS = 0.03
OUT_OF_MEMORY = ("OutOfMemoryError", "oom", "out of memory")


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark: some minutes on a data centre's GPU."""
    from benchmarks.engine.gpu_runs import size_for
    from qlora_engine.device import best_device

    device = best_device()
    if device.type != "cuda" and not quick:
        console.print(
            "engine.gpu: there is no CUDA device, so nothing is measured; --quick shows that it runs"
        )
        return []
    with scratch() as folder:
        _run("make", folder)
        runs: dict[str, Run] = {}
        for name, title in TITLES.items():
            told = _run(name, folder)
            if told is not None:
                runs[name] = Run(**json.loads(told))
                console.print(f"engine.gpu: {title}: {_rate(runs[name]):.0f} tokens per second")
    _check_same_work(runs)
    judged = device.type == "cuda"
    return _results(runs, size_for(device).multiplied, peak_flops(), judged=judged)


def _run(name: str, folder: Path) -> str | None:
    """Its last line; None when memory did not suffice."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.engine.gpu_runs", name, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return (done.stdout.splitlines() or [""])[-1]
    if name in TITLES and any(sign in done.stderr for sign in OUT_OF_MEMORY):
        console.print(f"engine.gpu: {TITLES[name]} does not fit into this GPU and is left out")
        return None
    raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")


def _check_same_work(runs: dict[str, Run]) -> None:
    if len({(run.tokens, run.parameters) for run in runs.values()}) > 1:
        raise RuntimeError(f"not all did the same work: {runs}")
    losses = [run.loss for run in runs.values()]
    if max(losses) > (1 + SAME_LOSS) * min(losses):
        raise RuntimeError(f"not all learned the same: {runs}")


def peak_flops() -> float:
    """What the device can do in a second: nominally, or measured where no data sheet is known."""
    import torch

    from qlora_engine.device import best_device

    device = best_device()
    if device.type == "cuda":
        words = torch.cuda.get_device_name(device).replace("-", " ").split()
        known = [flops for name, flops in NOMINAL.items() if name in words]
        if known:
            return known[0]
    width, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    one = torch.ones(width, width, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        (one @ one)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * width**3 / best


def _rate(run: Run) -> float:
    """Unpadded tokens per second."""
    return run.timed_tokens / run.seconds


def _results(runs: dict[str, Run], parameters: int, flops: float, *, judged: bool) -> list[Result]:
    def target(value: float) -> float | None:
        return value if judged else None

    results = []
    for name, other in LIKE.items():
        if name in runs and other in runs:
            ratio = _rate(runs[name]) / _rate(runs[other])
            title = f"tokens per second, {TITLES[name]} / {TITLES[other]}"
            results.append(Result(title, ratio, "ratio", target(FASTER), at_least=True))
    fastest = max((name for name in LIKE if name in runs), key=lambda name: _rate(runs[name]))
    for name, run in runs.items():
        share, title = 4 * parameters * _rate(run) / flops, TITLES[name]
        results += [
            Result(f"tokens per second, {title}", _rate(run), "tokens/s"),
            Result(
                f"share of peak arithmetic, {title}", share, "share",
                target(LEAST_SHARE) if name == fastest else None, at_least=True,
            ),
            Result(
                f"peak memory, {title}", run.peak_bytes / 2**30, "GiB",
                target(MOST_GIB) if name == "kinora_checkpointed" else None,
            ),
        ]  # fmt: skip
    return results
