"""Time per unpadded token and peak memory, against plain transformers + peft + bitsandbytes and against TRL.

Clip and text lengths are log-uniform from 1 to 16. The baselines have their best case: batches as length
grouping makes them of a thousand samples, hardly padded, of which everybody gets the same few; see `workload`
for model and samples and `speed_runs` for what each side does. Each training is a process of its own, rounds
are interleaved, and every other one goes in the other order; ratios are medians of those of each round.
Whether both sides compute the same is checked: trained parameters, tokens, loss of the training, and, on one
batch, loss and gradient. Without TRL (`make bench-install`) its figures are left out, and a line says so.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from benchmarks.engine.speed_runs import Run
from benchmarks.engine.workload import make_grouped_samples, make_model
from benchmarks.installation import console, scratch
from benchmarks.report import Result

MOST_TIME, MOST_MEMORY = 0.6, 1.0
SAME_LOSS, SAME_GRADIENT = 0.03, 1e-3
"""Relative. Of a training, in another order of samples; and of one batch, with other sums in float32."""
TITLES = {"plain": "plain", "checkpointed": "plain with checkpointing", "trl": "SFTTrainer"}


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark: about ten minutes on two quiet cores, or one."""
    layers, batches, rounds = (2, 2, 1) if quick else (30, 8, 2)
    names = ["kinora", "plain", *([] if quick else ["checkpointed"])]
    if find_spec("trl"):
        names.append("trl")
    else:
        console.print("engine.speed: TRL is not installed and is left out; make bench-install installs it")
    runs: dict[str, list[Run]] = {name: [] for name in names}
    with scratch() as folder:
        make_model(folder, layers)
        make_grouped_samples(folder, batches)
        difference = json.loads(_run("same", folder))
        for number in range(rounds):
            for name in names if number % 2 else names[::-1]:
                run = Run(**json.loads(_run(name, folder)))
                runs[name].append(run)
                console.print(
                    f"engine.speed: round {number + 1} of {rounds}, {name}:"
                    f" {_per_token(run):.2f} ms per token, {_busy_per_token(run):.2f} ms of processor"
                )
    _check_same_work(runs)
    return [
        Result("loss of one batch, ours against plain, relative", difference["loss"], "ratio", SAME_GRADIENT),
        Result("gradient of that, relative", difference["gradient"], "ratio", SAME_GRADIENT),
        *_results(runs),
    ]


def _run(name: str, folder: Path) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.engine.speed_runs", name, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
    return done.stdout.splitlines()[-1]


def _check_same_work(runs: dict[str, list[Run]]) -> None:
    ours = runs["kinora"][0]
    for name, found in runs.items():
        for run in found:
            if (run.tokens, run.parameters) != (ours.tokens, ours.parameters):
                raise RuntimeError(f"{name} did other work: {run} is not like {ours}")
            if abs(run.loss / ours.loss - 1) > SAME_LOSS:
                raise RuntimeError(f"{name} learned something else: {run} is not like {ours}")


def _per_token(run: Run) -> float:
    """Milliseconds."""
    return 1000 * run.seconds / run.timed_tokens


def _busy_per_token(run: Run) -> float:
    """Milliseconds of processor time, of all cores: other programs cost little of it."""
    return 1000 * run.processor_seconds / run.timed_tokens


def _peak(run: Run) -> float:
    """MiB."""
    return run.peak_bytes / 2**20


def _results(runs: dict[str, list[Run]]) -> list[Result]:
    def ratio(name: str, figure: Callable[[Run], float]) -> float:
        pairs = zip(runs["kinora"], runs[name], strict=True)
        return statistics.median(figure(ours) / figure(theirs) for ours, theirs in pairs)

    results = []
    for name in list(runs)[1:]:
        title = f"ours / {TITLES[name]}"
        results += [
            Result(f"time per token, {title}", ratio(name, _per_token), "ratio", MOST_TIME),
            Result(f"processor time per token, {title}", ratio(name, _busy_per_token), "ratio"),
            Result(f"peak memory, {title}", ratio(name, _peak), "ratio", MOST_MEMORY),
        ]
    for name, found in runs.items():
        title = TITLES.get(name, "ours")
        results += [
            Result(f"time per token, {title}", statistics.median(map(_per_token, found)), "ms"),
            Result(f"peak memory, {title}", statistics.median(map(_peak, found)), "MiB"),
        ]
    return results
