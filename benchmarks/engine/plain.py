"""The engine against a plain transformers + peft + bitsandbytes loop: time per step and peak memory.

Each round trains with both, one after the other, in processes of their own, and every other round in the
other order; the figures are ratios of medians over all rounds.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.installation import console, scratch
from benchmarks.report import Result
from benchmarks.training_loops import make_manifest, make_model

ROUNDS = 4
STEPS = 12
WARM_UP_STEPS = 3
"""The first steps decode clips and let the allocator settle."""
Which = Literal["kinora", "plain"]


@dataclass(frozen=True, slots=True)
class Run:
    """One training."""

    seconds: list[float]
    losses: list[float]
    peak_bytes: int


def measure() -> list[Result]:
    """Run the benchmark; about four minutes."""
    with scratch() as folder:
        console.print("engine: making clips and a base model …")
        clips = [sys.executable, "-m", "qlora_engine.data.shapes", str(folder / "clips"), "--clips", "32"]
        subprocess.run(clips, check=True, stdout=subprocess.DEVNULL)
        make_model(folder / "model")
        make_manifest(folder / "clips", folder / "manifest.json")
        runs: dict[Which, list[Run]] = {"kinora": [], "plain": []}
        for number in range(ROUNDS):
            order: tuple[Which, ...] = ("kinora", "plain") if number % 2 else ("plain", "kinora")
            for which in order:
                runs[which].append(_train(which, folder))
                console.print(
                    f"engine: round {number + 1} of {ROUNDS}, {which}:"
                    f" {statistics.median(_counted(runs[which][-1:])):.3f} s a step"
                )
    return _results(runs["kinora"], runs["plain"])


def _train(which: Which, folder: Path) -> Run:
    command = [sys.executable, "-m", "benchmarks.training_loops", which, str(folder), str(STEPS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def _counted(runs: Sequence[Run]) -> list[float]:
    return [seconds for run in runs for seconds in run.seconds[WARM_UP_STEPS - 1 :]]


def _results(ours: Sequence[Run], plain: Sequence[Run]) -> list[Result]:
    our_step, plain_step = (statistics.median(_counted(runs)) for runs in (ours, plain))
    our_peak, plain_peak = (statistics.median(run.peak_bytes for run in runs) for runs in (ours, plain))
    return [
        Result("time per step, ours / plain", our_step / plain_step, "ratio", 1.05),
        Result("peak memory, ours / plain", our_peak / plain_peak, "ratio", 1.05),
        Result("time per step, ours", our_step, "s"),
        Result("time per step, plain", plain_step, "s"),
        Result("peak memory, ours", our_peak / 2**20, "MiB"),
        Result("peak memory, plain", plain_peak / 2**20, "MiB"),
        Result("loss after the last step, ours", statistics.median(run.losses[-1] for run in ours), "nats"),
        Result("loss after the last step, plain", statistics.median(run.losses[-1] for run in plain), "nats"),
    ]
