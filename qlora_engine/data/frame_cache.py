"""Finished frames on disk by content, so that neither a resume nor a second epoch decodes a clip again.

An entry is found by the clip's SHA-256, the sampling, the size and the version of the pixels' making. It
comes into being by a rename and carries the SHA-256 of its content: several processes may share a folder, and
a damaged entry counts as none. What was unused longest leaves first. Free of torch.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import rfc8785

from qlora_engine.data.pictures import PIXELS_VERSION, Size
from qlora_engine.data.sampling import Sampling
from qlora_engine.data.video import SampledClip

SUFFIX = ".frames"
UNFINISHED = ".unfinished"
ABANDONED_SECONDS = 3600.0
"""An entry that was begun so long ago will not be finished."""
SWEEP_SHARE = 1 / 32
"""Of the limit: after writing so much, a process looks what all of them have written."""
KEPT_SHARE = 0.9
"""Of the limit: what a sweep leaves, so that not every entry needs one."""
FREE_SHARE = 0.05
"""Of the disk: frames are not kept where less is free."""
LONGEST_DESCRIPTION = 1 << 16
"""More than 512 moments take."""


def key(sha256: str, sampling: Sampling, size: Size) -> str:
    """The name of an entry."""
    content: dict[str, Any] = {
        "clip": sha256,
        "sampling": sampling.model_dump(mode="json"),
        "size": list(size),
        "pixels": PIXELS_VERSION,
    }
    return hashlib.sha256(rfc8785.dumps(content)).hexdigest()


@dataclass
class FrameCache:
    """A folder of at most `limit_bytes`, within a thirty-second of it for every process that writes."""

    folder: Path
    limit_bytes: int
    _unswept: int = field(default=1 << 62)

    def get(self, name: str) -> SampledClip | None:
        """The entry; None when there is none that is whole. Counts as use."""
        place = self._place(name)
        try:
            content = place.read_bytes()
        except OSError:
            return None
        found = _unpacked(content)
        with suppress(OSError):
            if found is None:
                place.unlink()
            else:
                os.utime(place)
        return found

    def put(self, name: str, sampled: SampledClip) -> bool:
        """Keep the frames; whether there was room. A full disk is no error: they are made again instead."""
        content = _packed(sampled)
        if len(content) > self.limit_bytes * KEPT_SHARE:
            return False
        place = self._place(name)
        arriving = place.with_name(f"{name}.{uuid4().hex}{UNFINISHED}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            usage = shutil.disk_usage(self.folder)
            if usage.free - len(content) < usage.total * FREE_SHARE:
                return False
            self._unswept += len(content)
            if self._unswept > self.limit_bytes * SWEEP_SHARE:
                self._sweep(len(content))
                self._unswept = len(content)
            arriving.write_bytes(content)
            arriving.replace(place)
        except OSError:
            with suppress(OSError):
                arriving.unlink()
            return False
        return True

    def _sweep(self, arriving: int) -> None:
        """Make the folder fit, the new entry included; one process at a time."""
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            files = []
            for path in self.folder.glob(f"??/*{SUFFIX}"):
                with suppress(OSError):
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
            for path in self.folder.glob(f"??/*{UNFINISHED}"):
                with suppress(OSError):
                    if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                        path.unlink()
            total = sum(size for _, size, _ in files) + arriving
            if total <= self.limit_bytes * (1 - SWEEP_SHARE):
                return
            for _, size, path in sorted(files):
                if total <= self.limit_bytes * KEPT_SHARE:
                    return
                with suppress(OSError):
                    path.unlink()
                total -= size

    def _place(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}{SUFFIX}"


def _packed(sampled: SampledClip) -> bytes:
    pixels = b"".join(picture.tobytes() for picture in sampled.pictures)
    height, width, _ = sampled.pictures[0].shape
    described = json.dumps(
        {"seconds": sampled.seconds, "duration": sampled.duration, "width": width, "height": height}
    ).encode()
    body = described + b"\n" + pixels
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _unpacked(content: bytes) -> SampledClip | None:
    body = memoryview(content)[65:]
    if content[:65] != hashlib.sha256(body).hexdigest().encode() + b"\n":
        return None
    described, _, _ = bytes(body[:LONGEST_DESCRIPTION]).partition(b"\n")
    facts = json.loads(described)
    shape = (len(facts["seconds"]), facts["height"], facts["width"], 3)
    pictures = np.frombuffer(body[len(described) + 1 :], np.uint8).reshape(shape)
    return SampledClip(tuple(pictures), tuple(facts["seconds"]), facts["duration"])
