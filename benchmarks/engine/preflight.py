"""What a training was predicted to take against what it took, each configuration in a process of its own.

On the CPU: the peak of the resident size less the resident size after the imports.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.engine.preflight_runs import Configuration, Tower
from benchmarks.installation import console, scratch
from benchmarks.report import Result

GIBIBYTE = 2**30
CONFIGURATIONS = (
    Configuration("llama", 256, 704, 8, 4096, 500, 6, {}, tuned=True),
    Configuration(
        "qwen3",
        256,
        704,
        8,
        8192,
        400,
        8,
        {"lora_variant": "dora", "batch_size": 4, "held_out_fraction": 0.4, "max_new_tokens": 8},
        tuned=True,
    ),
    Configuration("smolvlm", 256, 704, 4, 4096, 0, 6, {"temporal": True}, tower=Tower(384, 6, 168)),
    Configuration(
        "qwen2", 256, 704, 8, 16_000, 700, 4, {"dropout": 0.1, "compute_dtype": "bfloat16"}, tuned=True
    ),
    Configuration(
        "llama", 256, 704, 8, 4096, 500, 26, {"gradient_checkpointing": True, "rank": 64}, tuned=True
    ),
    Configuration("llama", 1024, 2816, 6, 16_000, 100, 2, {"micro_batch_size": 1}, tuned=True),
    Configuration(
        "qwen2", 512, 1408, 12, 8192, 900, 6, {"quantization": "fp4", "double_quantization": False}
    ),
    Configuration(
        "qwen3", 1024, 2816, 4, 64_000, 500, 4, {"gradient_checkpointing": True, "loss_chunk_tokens": 4096}
    ),
    Configuration(
        "smolvlm",
        512,
        1408,
        6,
        8192,
        0,
        8,
        {"rank": 32, "dropout": 0.05, "optimizer": "adamw_8bit"},
        tower=Tower(384, 8, 224),
    ),
    Configuration(
        "qwen3", 256, 768, 16, 4096, 800, 12, {"micro_batch_size": 6, "lora_variant": "dora"}, tuned=True
    ),
    Configuration("llama", 512, 1408, 16, 8192, 1000, 7, {"rank": 64, "optimizer": "adamw_8bit"}),
    Configuration("qwen2", 512, 1536, 20, 8192, 1200, 6, {"tokens_per_micro_batch": 7500}, tuned=True),
)
"""What is `tuned` has shown what the formula lacked; the others judge it."""
QUICK = 4


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark; about twelve minutes, or one when quick."""
    chosen, measured = CONFIGURATIONS[: QUICK if quick else None], []
    for configuration in chosen:
        with scratch() as folder:
            measured.append(_measured(configuration, folder))
    shares = [predicted / held for predicted, held in measured]
    new = [share for share, configuration in zip(shares, chosen, strict=True) if not configuration.tuned]
    false = sum(predicted * 1.1 < held for predicted, held in measured)
    return [
        Result("farthest from what was held", max(abs(share - 1) for share in shares), "of it", 0.1),
        Result(
            "the same, of those that nothing was tuned on", max(abs(share - 1) for share in new), "of it", 0.1
        ),
        Result("predicted to fit and did not, with a tenth of room", false, "of all", 0),
        Result("smallest peak", min(held for _, held in measured) / GIBIBYTE, "GiB"),
        Result("largest peak", max(held for _, held in measured) / GIBIBYTE, "GiB"),
        Result("configurations", len(measured), ""),
        Result("of them new", len(new), ""),
    ]


def _measured(configuration: Configuration, folder: Path) -> tuple[int, int]:
    (folder / "configuration.json").write_text(json.dumps(asdict(configuration)), "utf-8")
    command = [sys.executable, "-m", "benchmarks.engine.preflight_runs", str(folder)]
    subprocess.run([*command, "make"], check=True, capture_output=True)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    predicted, held = found["predicted"], found["held"]
    parts = ", ".join(f"{name} {size / GIBIBYTE:.2f}" for name, size in found["parts"].items())
    told = "tuned on" if configuration.tuned else "new"
    console.print(
        f"preflight: {configuration.name} ({told}): {held / GIBIBYTE:.2f} GiB held,"
        f" {predicted / GIBIBYTE:.2f} predicted ({predicted / held - 1:+.1%}): {parts}"
    )
    return predicted, held
