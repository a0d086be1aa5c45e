"""Ends what a test run leaves running, however the run itself ended.

Processes that a test starts inherit a mark in their environment. This one waits until the pipe from the run
closes, which the kernel sees to even after a SIGKILL, and ends every process with that mark. Servers that
those have started for themselves end with them (see `kinora.local.child`).
Run: ``python tests/reaper.py MARK``, with the pipe as its standard input.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

VARIABLE = "KINORA_TEST_RUN"
_PATIENCE_SECONDS = 30.0


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Mark what is started from here on; it ends with the context, or with this process."""
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    # A session of its own: Ctrl-C reaches the whole group of the terminal.
    with subprocess.Popen(
        [sys.executable, __file__, mark], stdin=subprocess.PIPE, start_new_session=True
    ) as reaper:
        assert reaper.stdin is not None
        os.environ[VARIABLE] = mark
        try:
            yield
        finally:
            del os.environ[VARIABLE]
            reaper.stdin.close()


def marked(mark: str) -> list[psutil.Process]:
    """Running processes with that mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(VARIABLE) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _end_all(mark: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (left := marked(mark)) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    _end_all(sys.argv[1])
