"""Whether this machine lets tests mount file systems that only they see."""

import functools
import shutil
import subprocess

import pytest

IN_OWN_MOUNTS = ("unshare", "--mount")
"""What is started by this sees file systems of its own; only root may."""


@functools.cache
def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*IN_OWN_MOUNTS, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def need_own_mounts() -> None:
    """Skip a test that needs a file system of its own, where that is not allowed."""
    if not _can_mount():
        pytest.skip("mounting a tiny file system needs root with CAP_SYS_ADMIN")
