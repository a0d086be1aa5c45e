"""Ties this process to its parent: when the parent dies, however, nothing of it lives on."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
ORPHANED = 3
"""Exit code of a process whose parent is gone."""


def die_with_parent(expected_parent: int | None = None) -> None:
    """Ask Linux to kill this process when the thread that started it ends.

    `expected_parent`, where the caller knows it, closes the gap between fork and this call: a parent that
    died before it sends no signal any more.
    """
    if os.uname().sysname == "Linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if expected_parent is not None and os.getppid() != expected_parent:
        os._exit(ORPHANED)
