"""What a training was predicted to take against what it took, each configuration in a process of its own.

On the CPU: the peak of the resident size less the resident size after the imports.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.engine.preflight_runs import Configuration
from benchmarks.installation import console, scratch
from benchmarks.report import Result

GIBIBYTE = 2**30
CONFIGURATIONS = (
    Configuration(256, 704, 8, 4096, 500, 4, {}),
    Configuration(256, 704, 8, 4096, 500, 16, {"gradient_checkpointing": True, "rank": 64}),
    Configuration(512, 1408, 4, 32_000, 200, 4, {"loss_chunk_tokens": 4096}),
    Configuration(1024, 2816, 4, 16_000, 100, 2, {"micro_batch_size": 1}),
    Configuration(256, 704, 16, 4096, 800, 4, {}),
    Configuration(256, 704, 8, 4096, 500, 8, {"dropout": 0.1}),
    Configuration(512, 1408, 8, 8192, 700, 4, {"rank": 32, "optimizer": "adamw_8bit"}),
    Configuration(256, 1024, 12, 8192, 1000, 6, {}),
    Configuration(2048, 5632, 4, 32_000, 100, 2, {"micro_batch_size": 1}),
    Configuration(256, 704, 16, 4096, 1000, 12, {"micro_batch_size": 8}),
    Configuration(512, 1408, 12, 8192, 1000, 6, {}),
    Configuration(512, 1408, 16, 8192, 1000, 6, {}),
)
QUICK = 4


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark; about ten minutes, or one when quick."""
    measured = []
    for configuration in CONFIGURATIONS[: QUICK if quick else None]:
        with scratch() as folder:
            measured.append(_measured(configuration, folder))
    shares = [predicted / held for predicted, held in measured]
    false = sum(predicted * 1.1 < held for predicted, held in measured)
    return [
        Result("farthest from what was held", max(abs(share - 1) for share in shares), "of it", 0.1),
        Result("predicted to fit and did not, with a tenth of room", false, "of all", 0),
        Result("smallest peak", min(held for _, held in measured) / GIBIBYTE, "GiB"),
        Result("largest peak", max(held for _, held in measured) / GIBIBYTE, "GiB"),
        Result("configurations", len(measured), ""),
    ]


def _measured(configuration: Configuration, folder: Path) -> tuple[int, int]:
    (folder / "configuration.json").write_text(json.dumps(asdict(configuration)), "utf-8")
    command = [sys.executable, "-m", "benchmarks.engine.preflight_runs", str(folder)]
    subprocess.run([*command, "make"], check=True, capture_output=True)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    predicted, held = found["predicted"], found["held"]
    parts = ", ".join(f"{name} {size / GIBIBYTE:.2f}" for name, size in found["parts"].items())
    console.print(
        f"preflight: {held / GIBIBYTE:.2f} GiB held, {predicted / GIBIBYTE:.2f} predicted"
        f" ({predicted / held - 1:+.1%}): {parts}"
    )
    return predicted, held
