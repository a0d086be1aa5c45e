"""Tells a full disk from other failures, whoever met it."""

import errno
import re

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FROM_RUST = re.compile(r"os error (\d+)")
"""Safetensors writes files in Rust and raises its own error, which only names the number in its text."""


def is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or one that it follows from, says that a file could not grow."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if (named := _FROM_RUST.search(str(seen))) and int(named.group(1)) in FULL:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
