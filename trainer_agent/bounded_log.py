"""Keeps what an engine prints from filling the disk: of a long output only the end keeps its blocks.

The engine appends to the file and owns its descriptor, so it can be neither renamed nor cut without losing
lines. A hole at its beginning takes the blocks back and leaves every place in the file where it was.
"""

import asyncio
import ctypes
import os
import sys
from pathlib import Path

import structlog

log = structlog.get_logger()

KEPT_BYTES = 8 * 2**20
"""What stays: more than a tail that reads every second can be behind, unless the engine floods it."""
_SLACK_BYTES = 8 * 2**20
_EVERY_SECONDS = 1.0
_BLOCK = 4096
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02


async def keep_bounded(file: Path) -> None:
    """Watch `file` for ever."""
    forgotten = 0
    while True:
        await asyncio.sleep(_EVERY_SECONDS)
        size = _size(file)
        if size - forgotten <= KEPT_BYTES + _SLACK_BYTES:
            continue
        try:
            await asyncio.to_thread(forget, file, size - KEPT_BYTES)
        except OSError as error:
            log.warning("engine_log_unbounded", error=str(error))
            return
        forgotten = size - KEPT_BYTES


def forget(file: Path, until: int) -> None:
    """Give back the blocks of everything before `until`, as far as they are whole.

    Raises:
        OSError: the file system cannot.
    """
    if sys.platform != "linux":
        raise OSError("only Linux can punch holes into files")
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(file, os.O_RDWR)
    try:
        length = ctypes.c_int64(until // _BLOCK * _BLOCK)
        if libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(0), length) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def next_data(descriptor: int, position: int) -> int:
    """Where the first byte at or behind `position` is that was not forgotten."""
    try:
        return os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError:
        return position  # at the end, or a file system without holes
