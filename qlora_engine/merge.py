"""``python -m qlora_engine.merge BASE ADAPTER OUTPUT``: merges an adapter, and tells how it goes.

Progress goes to stderr, what came of it to stdout. Exit codes: 0 merged, 1 not (stderr says why), 2 wrong
usage.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

from qlora_engine.failures import failure_of
from qlora_engine.imports import import_less, uncollected
from qlora_engine.noise import hush
from schemas.training import MergedDtype


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m qlora_engine.merge", description="Merge an adapter into its base model."
    )
    for name in ("base", "adapter", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--dtype", choices=get_args(MergedDtype), default="auto")
    parser.add_argument("--cpu", action="store_true", help="compute on the CPU, whatever else there is")
    asked = parser.parse_args()
    hush()
    import_less()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    failed = failure_of(lambda: _merge(asked))
    if failed is not None:
        sys.stderr.write(f"not merged: {failed.message}\n")
        return 1
    return 0


def _merge(asked: argparse.Namespace) -> None:
    sys.stderr.write("beginning …\n")
    with uncollected():
        import torch

        from qlora_engine.device import best_device
        from qlora_engine.training.merging import merge
    device = torch.device("cpu") if asked.cpu else best_device()
    merged = merge(asked.base, asked.adapter, asked.output, dtype=asked.dtype, device=device, told=_tell)
    sys.stdout.write(
        f"merged in {merged.dtype}, {merged.size_bytes / 1e6:,.1f} MB; logits differ by at most"
        f" {merged.difference:.1e} in float32, {merged.stored_difference:.1e} as stored\n"
    )
    sys.stdout.flush()


def _tell(phase: str, done: int, total: int) -> None:
    """One line a phase, and one for every tenth of it."""
    if done == 0:
        sys.stderr.write(f"{phase} …\n")
    elif done == total or done * 10 // total > (done - 1) * 10 // total:
        sys.stderr.write(f"{phase} {done}/{total}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
