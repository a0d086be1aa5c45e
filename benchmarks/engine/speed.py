"""Time per unpadded token and peak memory, against plain transformers + peft + bitsandbytes and against TRL.

Clip and text lengths are log-uniform from 1 to 16; the baselines group by length. Each training is a process
of its own, and every other round goes in the other order. Without TRL (`make bench-install`) its figures are
left out, and a line says so.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.engine.workload import make_model, make_samples
from benchmarks.installation import console, scratch
from benchmarks.report import Result

MOST_TIME, MOST_MEMORY = 0.6, 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """One training."""

    seconds: float
    tokens: int
    peak_bytes: int

    @property
    def milliseconds_per_token(self) -> float:
        return 1000 * self.seconds / self.tokens


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark: about ten minutes on two cores, or less than one."""
    layers, samples, rounds = (4, 32, 1) if quick else (30, 128, 2)
    names = ["kinora", "plain", *(["trl"] if find_spec("trl") else [])]
    if "trl" not in names:
        console.print("engine.speed: TRL is not installed and is left out; make bench-install installs it")
    runs: dict[str, list[Run]] = {name: [] for name in names}
    with scratch() as folder:
        make_model(folder, layers)
        make_samples(folder, samples)
        for number in range(rounds):
            for name in names if number % 2 else names[::-1]:
                runs[name].append(_train(name, folder))
                console.print(
                    f"engine.speed: round {number + 1} of {rounds}, {name}:"
                    f" {runs[name][-1].milliseconds_per_token:.2f} ms per token"
                )
    return _results(runs)


def _train(name: str, folder: Path) -> Run:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.engine.speed_runs", name, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def _results(runs: dict[str, list[Run]]) -> list[Result]:
    time = {
        name: statistics.median(run.milliseconds_per_token for run in found) for name, found in runs.items()
    }
    peak = {name: statistics.median(run.peak_bytes for run in found) for name, found in runs.items()}
    results = []
    for name in list(runs)[1:]:
        results += [
            Result(f"time per token, ours / {name}", time["kinora"] / time[name], "ratio", MOST_TIME),
            Result(f"peak memory, ours / {name}", peak["kinora"] / peak[name], "ratio", MOST_MEMORY),
        ]
    for name in runs:
        results += [
            Result(f"time per token, {name}", time[name], "ms"),
            Result(f"peak memory, {name}", peak[name] / 2**20, "MiB"),
        ]
    return results
