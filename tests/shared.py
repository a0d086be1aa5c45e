"""What all workers of a run share, made by the first that needs it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(paths: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that all workers of a run share; who reads it must not write to it."""
    workers_own = paths.getbasetemp()
    folder = (workers_own.parent if "PYTEST_XDIST_WORKER" in os.environ else workers_own) / name
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            make(unfinished := folder.with_suffix(".unfinished"))
            unfinished.rename(folder)
    return folder
