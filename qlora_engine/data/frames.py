"""Decoded and resized frames, kept up to a limit, so that a clip is decoded once and not once per epoch."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import psutil
import torch
import torch.nn.functional as functional

from qlora_engine.data.video import Picture, sample_clip
from qlora_engine.errors import ModelRefused
from qlora_engine.memory import usable_memory_bytes
from qlora_engine.models.families.base import ClipLayout, Moments, Shown, Vision


@dataclass(frozen=True)
class ClipFrames:
    """uint8 frames of shape [frames, 3, height, width], when they are shown, and what they become."""

    pixels: torch.Tensor
    moments: Moments
    layout: ClipLayout

    @property
    def shown(self) -> Shown:
        return Shown(self.layout, self.moments)


def resize(picture: Picture, height: int, width: int) -> torch.Tensor:
    """One RGB picture as uint8 [3, height, width]; bicubic and antialiased, as processors do."""
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    resized = functional.interpolate(
        tensor, (height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return resized[0].round_().clamp_(0, 255).to(torch.uint8)


def cache_limit() -> int:
    """Bytes that frames may take: a quarter of the free memory that is ours, at most 8 GiB."""
    return min(min(psutil.virtual_memory().available, usable_memory_bytes()) // 4, 8 << 30)


class Frames:
    """Frames of the clips in one folder. Thread-safe; the least recently used clips are forgotten first."""

    def __init__(
        self, folder: Path, count: int, vision: Vision | None, limit_bytes: int | None = None
    ) -> None:
        self._folder = folder
        self._count = count
        self._vision = vision
        self._limit = cache_limit() if limit_bytes is None else limit_bytes
        self._kept: OrderedDict[str, ClipFrames] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def of(self, clip: str) -> ClipFrames:
        """The frames of the clip at this path.

        Raises:
            ClipError: the clip cannot be decoded or is too short.
            ModelRefused: the model sees no clips (code ``no_vision``).
        """
        vision = self._vision
        if vision is None:
            raise ModelRefused(
                f"the model reads text alone and cannot see {clip}; choose a video-text model,"
                " or a dataset without clips",
                code="no_vision",
            )
        with self._lock:
            if clip in self._kept:
                self._kept.move_to_end(clip)
                return self._kept[clip]
        layouts: list[ClipLayout] = []

        def shrink(picture: Picture) -> Picture:
            height, width = picture.shape[:2]
            layouts.append(vision.layout(width, height, self._count))
            return resize(picture, layouts[0].height, layouts[0].width).numpy()

        sampled = sample_clip(self._folder / clip, self._count, shrink)
        pixels = torch.stack([torch.from_numpy(picture) for picture in sampled.pictures])
        found = ClipFrames(pixels, Moments(sampled.seconds, sampled.duration), layouts[0])
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
