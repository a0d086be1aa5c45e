"""The frames of a dataset's clips as tensors: from memory, else from disk, else decoded.

Whoever knows what comes next says so (`ahead`), and the clips are made ready while the model computes.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import psutil
import torch

from qlora_engine.data.frame_cache import FrameCache, key
from qlora_engine.data.pictures import Size, digest
from qlora_engine.data.sampling import Sampling, Timeline
from qlora_engine.data.video import SampledClip, sample_clip
from qlora_engine.errors import ModelRefused
from qlora_engine.memory import usable_memory_bytes
from qlora_engine.models.families.base import ClipLayout, Moments, Shown, Vision
from schemas.datasets import Clip

Decode = Callable[[Path, Sampling, Size], SampledClip]
MOST_AT_A_TIME = 4


@dataclass(frozen=True)
class ClipFrames:
    """uint8 frames of shape [frames, 3, height, width], when they are shown, and what they become."""

    pixels: torch.Tensor
    moments: Moments
    layout: ClipLayout

    @property
    def shown(self) -> Shown:
        return Shown(self.layout, self.moments)

    @property
    def digests(self) -> tuple[str, ...]:
        """The SHA-256 of each picture, as `pictures.digest` and `data.show` have it."""
        return frame_digests(self.pixels)


def frame_digests(pixels: torch.Tensor) -> tuple[str, ...]:
    """The SHA-256 of each of the uint8 frames [frames, 3, height, width]."""
    return tuple(digest(picture.permute(1, 2, 0).contiguous().numpy()) for picture in pixels)


def shown_clip(clip: Clip, vision: Vision | None, sampling: Sampling) -> Shown:
    """A clip as its prompt will see it, from the manifest alone.

    The moments are those of `sample_clip` where the frame rate is constant, and near them where it varies.

    Raises:
        ModelRefused: the model sees no clips (code ``no_vision``).
        FramesExceedClip: the clip cannot give the frames that the job asks for.
        ClipError: no layout fits.
    """
    if vision is None:
        raise ModelRefused(
            f"the model reads text alone and cannot see {clip.path}; choose a video-text model,"
            " or a dataset without clips",
            code="no_vision",
        )
    count = sampling.count(clip.path, clip.duration_seconds, clip.frames)
    times = tuple(index * clip.duration_seconds / clip.frames for index in range(clip.frames))
    timeline = Timeline(times, clip.duration_seconds)
    moments = Moments(tuple(times[index] for index in timeline.evenly(count)), clip.duration_seconds)
    return Shown(vision.layout(round(clip.width * clip.pixel_aspect), clip.height, count), moments)


def cache_limit() -> int:
    """Bytes that frames may take: a quarter of the free memory that is ours, at most 8 GiB."""
    return min(min(psutil.virtual_memory().available, usable_memory_bytes()) // 4, 8 << 30)


class ClipSource(Protocol):
    """Where clips come from, in the order in which they are wanted."""

    def of(self, clip: str) -> ClipFrames:
        """The frames of the clip at this path, as soon as they are ready."""
        ...

    def ahead(self, clips: Iterable[str]) -> None:
        """These will be wanted, in this order."""
        ...


class Frames:
    """Frames of the clips in one folder. Thread-safe; the least recently used clips are forgotten first."""

    def __init__(
        self,
        folder: Path,
        clips: Iterable[Clip],
        sampling: Sampling,
        vision: Vision | None,
        *,
        limit_bytes: int | None = None,
        decode: Decode = sample_clip,
        cache: FrameCache | None = None,
    ) -> None:
        """
        Args:
            clips: what the manifest says of the files in `folder`.
            vision: what the model makes of a clip; None for one that reads text alone.
            decode: where the work is done, such as `Decoders.sample`.
            cache: outlives this process.
        """
        self.sampling = sampling
        self.decoded = 0
        """Clips that were really decoded."""
        self._folder = folder
        self._vision = vision
        self._limit = cache_limit() if limit_bytes is None else limit_bytes
        self._decode = decode
        self._cache = cache
        self._clips = {clip.path: clip for clip in clips}
        self._kept: OrderedDict[str, ClipFrames] = OrderedDict()
        self._bytes = 0
        self._loading: dict[str, Future[ClipFrames]] = {}
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._fewer: dict[int, Frames] = {}

    def fewer(self, divisor: int) -> "Frames":
        """The same clips with so many times fewer frames; closed together with this one."""
        if divisor not in self._fewer:
            self._fewer[divisor] = Frames(
                self._folder,
                self._clips.values(),
                self.sampling.fewer(divisor),
                self._vision,
                limit_bytes=self._limit,
                decode=self._decode,
                cache=self._cache,
            )
        return self._fewer[divisor]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is being decoded, and drop what is not yet."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for fewer in self._fewer.values():
            fewer.close()

    def of(self, clip: str) -> ClipFrames:
        """The frames of the clip at this path.

        Raises:
            ClipError: the clip cannot be decoded or is too short.
            ModelRefused: the model sees no clips (code ``no_vision``).
        """
        mine: Future[ClipFrames] = Future()
        with self._lock:
            if clip in self._kept:
                self._kept.move_to_end(clip)
                return self._kept[clip]
            theirs = self._loading.setdefault(clip, mine)
        if theirs is not mine:
            return theirs.result()
        try:
            found = self._load(clip)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(found)
            return found
        finally:
            with self._lock:
                del self._loading[clip]
                if mine.exception() is None:
                    self._keep(clip, mine.result())

    def ahead(self, clips: Iterable[str]) -> None:
        """Make these ready in the background, in this order; what is wrong with one is told by `of`."""
        with self._lock:
            wanted = [clip for clip in dict.fromkeys(clips) if clip not in self._kept]
            if wanted and self._pool is None:
                count = min(os.cpu_count() or 1, MOST_AT_A_TIME)
                self._pool = ThreadPoolExecutor(count, thread_name_prefix="frames")
        for clip in wanted:
            assert self._pool is not None  # noqa: S101 - an invariant
            self._pool.submit(self.of, clip)

    def _load(self, clip: str) -> ClipFrames:
        known = self._clips[clip]
        layout = shown_clip(known, self._vision, self.sampling).layout
        size = Size(layout.width, layout.height)
        name = key(known.sha256, self.sampling, size)
        sampled = None if self._cache is None else self._cache.get(name)
        if sampled is None:
            sampled = self._decode(self._folder / clip, self.sampling, size)
            with self._lock:
                self.decoded += 1
            if self._cache is not None:
                self._cache.put(name, sampled)
        pixels = torch.from_numpy(np.stack(sampled.pictures)).permute(0, 3, 1, 2).contiguous()
        return ClipFrames(pixels, Moments(sampled.seconds, sampled.duration), layout)

    def _keep(self, clip: str, frames: ClipFrames) -> None:
        if clip in self._kept or frames.pixels.nbytes > self._limit:
            return
        self._kept[clip] = frames
        self._bytes += frames.pixels.nbytes
        while self._bytes > self._limit:
            _, forgotten = self._kept.popitem(last=False)
            self._bytes -= forgotten.pixels.nbytes
