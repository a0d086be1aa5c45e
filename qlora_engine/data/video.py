"""Reads clips with PyAV: what a file really holds, and frames evenly spaced in time. Free of torch.

Times are presentation timestamps, so clips with a variable frame rate are sampled by what is on the screen
at a moment, not by counting frames. Only known container formats are opened: playlists, which can name
other files and addresses, are not.
"""

import math
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from numpy.typing import NDArray

from qlora_engine.errors import ClipUndecodable, ClipWithoutVideo, FramesExceedClip

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,ogg,asf,gif,h264,hevc,ivf"
)
READ_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
SEEK_COST = 6
"""A seek takes about as long as decoding so many frames."""
THREADED_PIXELS = 640 * 360
_DAMAGE = re.compile(
    r"error while decoding|concealing \d|corrupt|invalid nal|damaged|partial file", re.IGNORECASE
)
_DURATION = re.compile(r"^(\d+):(\d\d):(\d\d(?:\.\d+)?)")

Picture = NDArray[np.uint8]
"""One RGB frame: height x width x 3."""
Shrink = Callable[[Picture], Picture]
"""What is kept of a picture, made as soon as it is decoded: many large ones at once are gigabytes."""


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


@dataclass(frozen=True)
class SampledClip:
    """Pictures in time order, with the seconds since the first frame at which each is shown."""

    pictures: tuple[Picture, ...]
    """Upright, and as `shrink` made them."""
    seconds: tuple[float, ...]
    duration: float


@dataclass(frozen=True)
class Timeline:
    """When each frame of a clip is shown; `end` is the end of the last one. Seconds from the first frame."""

    times: tuple[float, ...]
    end: float

    def evenly(self, count: int) -> list[int]:
        """Indices of the frames on the screen in the middle of each of `count` equal stretches of time."""
        moments = ((index + 0.5) * self.end / count for index in range(count))
        return [max(0, bisect_right(self.times, moment + 1e-9) - 1) for moment in moments]


@dataclass(frozen=True)
class _Packet:
    pts: int
    keyframe: bool


# ---- probing ------------------------------------------------------------------------------------------


def probe_clip(file: Path) -> ProbedClip:
    """Decode the whole file and say what it holds.

    One thread only, so that what the decoder complains about is heard.

    Raises:
        ClipUndecodable: empty, truncated, damaged or not a video container.
        ClipWithoutVideo: there is no video stream.
    """
    with av.logging.Capture(local=True) as complaints, _opened(file) as (container, stream):
        stream.thread_type = "NONE"
        audio = bool(container.streams.audio)
        stamps: list[int | None] = []
        last_duration = cut_away = 0
        shape, turn = (0, 0), _Turn(1, 0, 0, 1)
        for packet in container.demux(stream):
            cut_away += packet.is_discard
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise _damaged(file, f"frame {len(stamps) + 1} is corrupt")
                if not stamps:
                    turn = _turn_of(frame)
                    shape = turn.shape(frame.width, frame.height)
                stamps.append(frame.pts)
                last_duration = frame.duration or 0
        if not stamps:
            raise _damaged(file, "no frame decodes")
        timeline = _timeline(stamps, last_duration, stream)
        _check_whole(file, stream, _declared_frames(container, stream) - cut_away, len(stamps), timeline)
    for complaint in complaints:
        if complaint[0] <= av.logging.ERROR and _DAMAGE.search(complaint[2]):
            raise _damaged(file, complaint[2].strip())
    return ProbedClip(
        frames=len(stamps),
        duration_seconds=round(timeline.end, 6),
        width=shape[0],
        height=shape[1],
        rotation=turn.degrees,
        codec=stream.codec_context.codec.canonical_name,
        variable_frame_rate=_varies(timeline, float(stream.time_base or 0)),
        has_audio=audio,
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
        raise _damaged(file, f"it declares {declared} frames, but only {decoded} decode")
    match = _DURATION.match(stream.metadata.get("DURATION", ""))
    if match:
        hours, minutes, seconds = match.groups()
        promised = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        if timeline.end < promised * 0.9 - 0.2:
            raise _damaged(file, f"it declares {promised:.1f} s, but only {timeline.end:.1f} s decode")


def _varies(timeline: Timeline, tick: float) -> bool:
    gaps = sorted(later - earlier for earlier, later in pairwise(timeline.times))
    if not gaps:
        return False
    return gaps[-1] - gaps[0] > max(2.5 * tick, 0.1 * gaps[len(gaps) // 2])


# ---- sampling -----------------------------------------------------------------------------------------


def _whole(picture: Picture) -> Picture:
    return picture


def sample_clip(file: Path, count: int, shrink: Shrink = _whole) -> SampledClip:
    """`count` frames evenly spaced in time, found by seeking or by decoding on, whichever is less work.

    Raises:
        FramesExceedClip: the clip has fewer than `count` frames.
        ClipUndecodable, ClipWithoutVideo: as in `probe_clip`.
    """
    with _opened(file) as (container, stream):
        if stream.codec_context.width * stream.codec_context.height >= THREADED_PIXELS:
            stream.thread_type = "AUTO"
        packets, last_duration = _read_packets(container, stream)
        if packets is not None:
            shown = sorted(packet.pts for packet in packets)
            timeline = _timeline(shown, last_duration, stream)
            chosen = _choose(file, timeline, count)
            pictures = _collect(container, stream, packets, {shown[index] for index in chosen}, shrink)
            if pictures is not None:
                return _sampled([pictures[shown[index]] for index in chosen], timeline, chosen)
    return _sample_by_counting(file, count, shrink)


def _sample_by_counting(file: Path, count: int, shrink: Shrink) -> SampledClip:
    """For files whose packets do not tell the times: decode once for the times, once for the frames."""
    with _opened(file) as (container, stream):
        stamps = []
        last_duration = 0
        for frame in container.decode(stream):
            stamps.append(frame.pts)
            last_duration = frame.duration or 0
        if not stamps:
            raise _damaged(file, "no frame decodes")
        timeline = _timeline(stamps, last_duration, stream)
    chosen = _choose(file, timeline, count)
    wanted = set(chosen)
    pictures: dict[int, Picture] = {}
    with _opened(file) as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                pictures[index] = shrink(_upright(frame))
            if len(pictures) == len(wanted):
                break
    return _sampled([pictures[index] for index in chosen], timeline, chosen)


def _choose(file: Path, timeline: Timeline, count: int) -> list[int]:
    if count > len(timeline.times):
        raise FramesExceedClip(
            f"frames is {count}, but {file.name} has only {len(timeline.times)} frames;"
            f" lower frames to {len(timeline.times)} or less, or leave the clip out"
        )
    return timeline.evenly(count)


def _sampled(pictures: Sequence[Picture], timeline: Timeline, chosen: Sequence[int]) -> SampledClip:
    return SampledClip(tuple(pictures), tuple(timeline.times[index] for index in chosen), timeline.end)


def _read_packets(container: Any, stream: Any) -> tuple[list[_Packet] | None, int]:
    """The packets in decoding order, without decoding; None when they do not tell when frames are shown."""
    if (
        container.format.name == "avi"
    ):  # it keeps no presentation times, which matters as soon as there are B-frames
        return None, 0
    packets: list[_Packet] = []
    last = (-1, 0)
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:
            continue
        if packet.pts is None:
            return None, 0
        packets.append(_Packet(packet.pts, packet.is_keyframe))
        last = max(last, (packet.pts, packet.duration or 0))
    distinct = len({packet.pts for packet in packets}) == len(packets)
    return (packets, last[1]) if packets and distinct else (None, 0)


def _collect(
    container: Any, stream: Any, packets: list[_Packet], wanted: set[int], shrink: Shrink
) -> dict[int, Picture] | None:
    """The wanted frames by timestamp; None when the file does not decode to what its packets say."""
    groups = _groups(packets, wanted)
    last = max(index for index, packet in enumerate(packets) if packet.pts in wanted)
    seeking = sum(SEEK_COST + length for _, length, _ in groups)
    if seeking < last + 1:
        found: dict[int, Picture] = {}
        for start, _, members in groups:
            found |= _decode_from(container, stream, start, members, shrink)
        if found.keys() == wanted:
            return found
    found = _decode_from(container, stream, min(packet.pts for packet in packets), wanted, shrink)
    return found if found.keys() == wanted else None


def _groups(packets: list[_Packet], wanted: set[int]) -> list[tuple[int, int, set[int]]]:
    """Wanted frames by the keyframe they hang on: (its timestamp, frames to decode, wanted timestamps)."""
    groups: dict[int, tuple[int, int, set[int]]] = {}
    key = 0
    for index, packet in enumerate(packets):
        if packet.keyframe:
            key = index
        if packet.pts in wanted:
            members = groups[key][2] if key in groups else set()
            groups[key] = (packets[key].pts, index - key + 1, members | {packet.pts})
    return list(groups.values())


def _decode_from(
    container: Any, stream: Any, start: int, wanted: set[int], shrink: Shrink
) -> dict[int, Picture]:
    container.seek(start, stream=stream, backward=True)
    found: dict[int, Picture] = {}
    last = max(wanted)
    for frame in container.decode(stream):
        if frame.pts is None:
            return {}
        if frame.pts in wanted:
            found[frame.pts] = shrink(_upright(frame))
        if frame.pts >= last:
            break
    return found


# ---- files, times, turns -------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream; whatever FFmpeg raises inside becomes `ClipUndecodable`."""
    try:
        if file.stat().st_size == 0:
            raise _damaged(file, "the file is empty")
        with av.open(str(file), options=READ_OPTIONS) as container:
            pictures = [stream for stream in container.streams.video if not _is_cover(stream)]
            if not pictures:
                raise ClipWithoutVideo(f"{file.name} holds no video stream (sound only?); leave it out")
            yield container, pictures[0]
    except av.error.FFmpegError as error:
        raise _damaged(file, str(error.strerror or error)) from error
    except (ValueError, OverflowError) as error:
        raise _damaged(file, str(error)) from error


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _damaged(file: Path, reason: str) -> ClipUndecodable:
    return ClipUndecodable(f"{file.name} cannot be decoded: {reason}; record or convert it again")


def _timeline(stamps: Sequence[int | None], last_duration: int, stream: Any) -> Timeline:
    """Seconds from the first frame; by counting where stamps are missing or do not grow."""
    known = [stamp for stamp in stamps if stamp is not None]
    rate = float(stream.guessed_rate or stream.average_rate or 25)
    if len(known) < len(stamps) or any(later <= earlier for earlier, later in pairwise(known)):
        return Timeline(tuple(index / rate for index in range(len(stamps))), len(stamps) / rate)
    base = float(stream.time_base)
    times = tuple((stamp - known[0]) * base for stamp in known)
    last = last_duration * base or (times[-1] / (len(times) - 1) if len(times) > 1 else 1 / rate)
    return Timeline(times, times[-1] + last)


@dataclass(frozen=True)
class _Turn:
    """The display matrix's upper left corner as -1, 0 and 1: x' = a x + c y, y' = b x + d y."""

    a: int
    b: int
    c: int
    d: int

    @property
    def degrees(self) -> int:
        """Clockwise."""
        return round(math.degrees(math.atan2(self.b, self.a))) % 360

    @property
    def on_its_side(self) -> bool:
        return self.a == 0

    def shape(self, width: int, height: int) -> tuple[int, int]:
        return (height, width) if self.on_its_side else (width, height)

    def apply(self, picture: Picture) -> Picture:
        if self.on_its_side:
            picture, down, across = picture.transpose(1, 0, 2), self.b, self.c
        else:
            down, across = self.d, self.a
        return np.ascontiguousarray(picture[:: down or 1, :: across or 1])


def _turn_of(frame: Any) -> _Turn:
    matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return _Turn(1, 0, 0, 1)
    a, b, _, c, d = struct.unpack("<5i", bytes(matrix)[:20])
    if abs(a) >= abs(b):
        return _Turn(1 if a >= 0 else -1, 0, 0, 1 if d >= 0 else -1)
    return _Turn(0, 1 if b > 0 else -1, 1 if c > 0 else -1, 0)


def _upright(frame: Any) -> Picture:
    return _turn_of(frame).apply(frame.to_ndarray(format="rgb24"))
