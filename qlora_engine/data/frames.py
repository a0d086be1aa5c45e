"""Decoded and resized frames, kept up to a limit, so that a clip is decoded once and not once per epoch."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import psutil
import torch
import torch.nn.functional as functional

from qlora_engine.data.video import Picture, sample_clip
from qlora_engine.memory import usable_memory_bytes
from qlora_engine.models.families.base import Moments


@dataclass(frozen=True)
class ClipFrames:
    """uint8 frames of shape [frames, 3, size, size] and when they are shown."""

    pixels: torch.Tensor
    moments: Moments


def resize(picture: Picture, size: int) -> torch.Tensor:
    """One RGB picture as a uint8 square [3, size, size]; bicubic and antialiased, as processors do."""
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    resized = functional.interpolate(
        tensor, (size, size), mode="bicubic", antialias=True, align_corners=False
    )
    return resized[0].round_().clamp_(0, 255).to(torch.uint8)


def cache_limit() -> int:
    """Bytes that frames may take: a quarter of the free memory that is ours, at most 8 GiB."""
    return min(min(psutil.virtual_memory().available, usable_memory_bytes()) // 4, 8 << 30)


class Frames:
    """Frames of the clips in one folder. Thread-safe; the least recently used clips are forgotten first."""

    def __init__(self, folder: Path, count: int, size: int, limit_bytes: int | None = None) -> None:
        self._folder = folder
        self._count = count
        self._size = size
        self._limit = cache_limit() if limit_bytes is None else limit_bytes
        self._kept: OrderedDict[str, ClipFrames] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def of(self, clip: str) -> ClipFrames:
        """The frames of the clip at this path.

        Raises:
            ClipError: the clip cannot be decoded or is too short.
        """
        with self._lock:
            if clip in self._kept:
                self._kept.move_to_end(clip)
                return self._kept[clip]
        sampled = sample_clip(
            self._folder / clip, self._count, lambda picture: resize(picture, self._size).numpy()
        )
        pixels = torch.stack([torch.from_numpy(picture) for picture in sampled.pictures])
        found = ClipFrames(pixels, Moments(sampled.seconds, sampled.duration))
        with self._lock:
            self._keep(clip, found)
        return found

    def _keep(self, clip: str, frames: ClipFrames) -> None:
        if clip in self._kept or frames.pixels.nbytes > self._limit:
            return
        self._kept[clip] = frames
        self._bytes += frames.pixels.nbytes
        while self._bytes > self._limit:
            _, forgotten = self._kept.popitem(last=False)
            self._bytes -= forgotten.pixels.nbytes
