"""``python -m qlora_engine``: an engine for its parent process, or a probe of this machine."""

import argparse
import os
import sys
from pathlib import Path
from typing import BinaryIO

from qlora_engine import process
from qlora_engine.imports import import_less, uncollected
from qlora_engine.noise import hush


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m qlora_engine", description="The training engine.")
    parser.add_argument(
        "--updates-fd", type=int, default=1, help="file descriptor for updates (default: stdout)"
    )
    parser.add_argument("--parent-pid", type=int, help="end at once unless this is the parent")
    parser.add_argument(
        "--spec", type=Path, help="do what this file says, and read no stdin; for use by hand"
    )
    parser.add_argument("--probe", action="store_true", help="say what this machine can do, and end")
    arguments = parser.parse_args()
    hush()
    import_less()
    updates = _updates(arguments.updates_fd)
    if arguments.spec is not None:
        process.run_by_hand(updates, arguments.spec)
    if not arguments.probe:
        process.run(updates, arguments.parent_pid)
    with uncollected():
        from qlora_engine.probe import probe

    process.UpdatePipe(updates).emit(probe())


def _updates(descriptor: int) -> BinaryIO:
    """The pipe to the parent, kept from the processes that we start."""
    if descriptor == sys.stdout.fileno():
        return sys.stdout.buffer
    os.set_inheritable(descriptor, False)
    return os.fdopen(descriptor, "wb", buffering=0)


if __name__ == "__main__":
    main()
