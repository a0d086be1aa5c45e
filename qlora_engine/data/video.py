"""Reads clips with PyAV: what a file really holds, and frames evenly spaced in time. Free of torch.

Times are presentation timestamps, so clips with a variable frame rate are sampled by what is on the screen
at a moment, not by counting frames.
"""

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging

from qlora_engine.data.containers import damaged, opened
from qlora_engine.data.packets import Plan, Walk, read_index
from qlora_engine.data.pictures import Developer, Picture, Size, Turn, digest, turn_of
from qlora_engine.data.sampling import Sampling, Timeline

THREADED_PIXELS = 1280 * 720
"""Frames of fewer are decoded faster on one thread, whose start costs nothing."""
MOST_THREADS = 4
_DAMAGE = re.compile(
    r"error while decoding|concealing \d|corrupt|invalid nal|damaged|partial file", re.IGNORECASE
)
_DURATION = re.compile(r"^(\d+):(\d\d):(\d\d(?:\.\d+)?)")


@dataclass(frozen=True)
class ProbedClip:
    """What a file holds, found by decoding all of it."""

    frames: int
    duration_seconds: float
    width: int
    height: int
    rotation: int
    codec: str
    variable_frame_rate: bool
    has_audio: bool
    pixel_aspect: float


@dataclass(frozen=True)
class SampledClip:
    """Pictures in time order, with the seconds since the first frame at which each is shown."""

    pictures: tuple[Picture, ...]
    seconds: tuple[float, ...]
    duration: float
    source_digests: tuple[str, ...] = ()
    """Of the same frames in the clip's own size, where asked for."""

    @property
    def digests(self) -> tuple[str, ...]:
        """See `pictures.digest`."""
        return tuple(digest(picture) for picture in self.pictures)


# ---- probing ------------------------------------------------------------------------------------------


def probe_clip(file: Path) -> ProbedClip:
    """Decode the whole file and say what it holds.

    One thread only, so that what the decoder complains about is heard.

    Raises:
        ClipUndecodable: empty, truncated, damaged or not a video container.
        ClipWithoutVideo: there is no video stream.
    """
    with av.logging.Capture(local=True) as complaints, opened(file) as (container, stream):
        stream.thread_type = "NONE"
        audio = bool(container.streams.audio)
        stamps: list[int | None] = []
        last_duration = cut_away = 0
        shape, turn = Size(0, 0), Turn(1, 0, 0, 1)
        for packet in container.demux(stream):
            cut_away += packet.is_discard
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise damaged(file, f"frame {len(stamps) + 1} is corrupt")
                if not stamps:
                    turn = turn_of(frame)
                    shape = turn.shape(frame.width, frame.height)
                    Developer(stream, Size(8, 8)).picture(frame)  # what cannot be shown is refused here
                stamps.append(frame.pts)
                last_duration = frame.duration or 0
        if not stamps:
            raise damaged(file, "no frame decodes")
        timeline = _timeline(stamps, last_duration, stream)
        _check_whole(file, stream, _declared_frames(container, stream) - cut_away, len(stamps), timeline)
    for complaint in complaints:
        if complaint[0] <= av.logging.ERROR and _DAMAGE.search(complaint[2]):
            raise damaged(file, complaint[2].strip())
    return ProbedClip(
        frames=len(stamps),
        duration_seconds=round(timeline.end, 6),
        width=shape.width,
        height=shape.height,
        rotation=turn.degrees,
        codec=stream.codec_context.codec.canonical_name,
        variable_frame_rate=timeline.varies(float(stream.time_base or 0)),
        has_audio=audio,
        pixel_aspect=_pixel_aspect(stream, turn),
    )


def _declared_frames(container: Any, stream: Any) -> int:
    """How many frames the container promises, those that an edit list hides included; 0 when it does not."""
    declared = int(stream.frames)
    if "mp4" in container.format.name:  # its index is without what lies behind the edit list's end
        return min(declared, len(stream.index_entries))
    return declared


def _check_whole(file: Path, stream: Any, declared: int, decoded: int, timeline: Timeline) -> None:
    """Compare with what the container declares, because the tail of a truncated file is simply absent."""
    if declared > 0 and decoded < declared - max(2, declared // 50):
        raise damaged(file, f"it declares {declared} frames, but only {decoded} decode")
    match = _DURATION.match(stream.metadata.get("DURATION", ""))
    if match:
        hours, minutes, seconds = match.groups()
        promised = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        if timeline.end < promised * 0.9 - 0.2:
            raise damaged(file, f"it declares {promised:.1f} s, but only {timeline.end:.1f} s decode")


def _pixel_aspect(stream: Any, turn: Turn) -> float:
    """Width of a pixel by its height, after the turn; square where the file says nothing or nonsense."""
    declared = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    aspect = Fraction(declared) if declared else Fraction(1)
    if not Fraction(1, 16) <= aspect <= 16:
        return 1.0
    return round(float(1 / aspect if turn.on_its_side else aspect), 6)


# ---- sampling -----------------------------------------------------------------------------------------


def sample_clip(
    file: Path,
    sampling: Sampling,
    size: Size | None = None,
    *,
    source_digests: bool = False,
    plan: Plan = "best",
) -> SampledClip:
    """The frames that `sampling` asks for, as pictures of `size` (the clip's own, when absent).

    Raises:
        FramesExceedClip: the clip has fewer frames than asked for.
        ClipUndecodable, ClipWithoutVideo: as in `probe_clip`.
    """
    with opened(file) as (container, stream):
        _set_threads(stream)
        index = read_index(container, stream)
        if index is not None:
            timeline = _timeline(index.stamps, index.last_duration, stream)
            chosen = _choose(file, timeline, sampling)
            darkroom = _Darkroom(stream, size, source_digests)
            stamps = [index.stamps[place] for place in chosen]
            if _collected(Walk(container, stream, index, plan), sorted(set(stamps)), darkroom):
                return darkroom.clip(timeline, chosen, stamps)
    return _sample_by_counting(file, sampling, size, source_digests)


class _Darkroom:
    """Keeps the finished pictures of wanted frames, never the frames: many large ones are gigabytes."""

    def __init__(self, stream: Any, size: Size | None, source_digests: bool) -> None:
        self._small = Developer(stream, size)
        self._whole = Developer(stream) if source_digests else None
        self._finished: dict[int, Picture] = {}
        self._sources: dict[int, str] = {}

    def develop(self, key: int, frame: Any) -> None:
        self._finished[key] = self._small.picture(frame)
        if self._whole is not None:
            self._sources[key] = digest(self._whole.picture(frame))

    def __len__(self) -> int:
        return len(self._finished)

    def clip(self, timeline: Timeline, chosen: list[int], keys: list[int]) -> SampledClip:
        return SampledClip(
            pictures=tuple(self._finished[key] for key in keys),
            seconds=tuple(timeline.times[place] for place in chosen),
            duration=timeline.end,
            source_digests=tuple(self._sources[key] for key in keys) if self._whole is not None else (),
        )


def _collected(walk: Walk, stamps: list[int], darkroom: _Darkroom) -> bool:
    """Whether the walk found all frames; False where the file is not what its packets say."""
    try:
        return walk.collect(stamps, darkroom.develop)
    except (LookupError, av.error.FFmpegError):
        return False


def _sample_by_counting(
    file: Path, sampling: Sampling, size: Size | None, source_digests: bool
) -> SampledClip:
    """For files whose packets do not tell the times: decode once for the times, once for the frames."""
    with opened(file) as (container, stream):
        _set_threads(stream)
        stamps = []
        last_duration = 0
        for frame in container.decode(stream):
            stamps.append(frame.pts)
            last_duration = frame.duration or 0
        if not stamps:
            raise damaged(file, "no frame decodes")
        timeline = _timeline(stamps, last_duration, stream)
    chosen = _choose(file, timeline, sampling)
    wanted = set(chosen)
    with opened(file) as (container, stream):
        _set_threads(stream)
        darkroom = _Darkroom(stream, size, source_digests)
        for place, frame in enumerate(container.decode(stream)):
            if place in wanted:
                if frame.is_corrupt:
                    raise damaged(file, f"frame {place + 1} is corrupt")
                darkroom.develop(place, frame)
            if len(darkroom) == len(wanted):
                return darkroom.clip(timeline, chosen, chosen)
    raise damaged(file, "it decodes to fewer frames the second time")


def _set_threads(stream: Any) -> None:
    if stream.codec_context.width * stream.codec_context.height < THREADED_PIXELS:
        stream.thread_type = "NONE"
    else:
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = min(MOST_THREADS, os.cpu_count() or 1)


def _choose(file: Path, timeline: Timeline, sampling: Sampling) -> list[int]:
    return timeline.evenly(sampling.count(file.name, timeline.end, len(timeline.times)))


def _timeline(stamps: list[int | None] | list[int], last_duration: int, stream: Any) -> Timeline:
    rate = float(stream.guessed_rate or stream.average_rate or 25)
    return Timeline.from_stamps(stamps, last_duration, float(stream.time_base), rate)
