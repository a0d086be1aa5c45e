"""Writes the odd clips that tests need."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from qlora_engine.data.containers import opened
from qlora_engine.data.decoder import Judge, Usable, answer
from qlora_engine.data.pictures import Developer, Picture, Size
from schemas.datasets import Clip

WIDTH, HEIGHT = 96, 64


def pictures(count: int) -> list[np.ndarray]:
    """Grey bars that grow to the right, with a red corner at the top left: frame and turn are visible."""
    drawn = []
    for index in range(count):
        picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        picture[:, : (index + 1) * WIDTH // count] = 200
        picture[: HEIGHT // 2, : WIDTH // 4] = (255, 0, 0)
        drawn.append(picture)
    return drawn


def shown_index(picture: np.ndarray, count: int) -> int:
    """Which of `pictures(count)` this is."""
    bar = int((picture[-4, :, 1] > 100).sum())
    return round(bar * count / WIDTH) - 1


@contextmanager
def ordinary_priority() -> Iterator[None]:
    """As root, SVT-AV1 makes the thread that encodes a real-time one, and whatever it starts inherits that.

    A server that waits by spinning then starves the whole machine.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def write_video(
    file: Path,
    codec: str = "libx264",
    frames: int = 20,
    *,
    rotation: int | None = None,
    audio: bool = False,
    milliseconds: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    first: int = 0,
) -> Path:
    """`frames` pictures at 10 frames per second from picture time `first` on, or at the given times."""
    with ordinary_priority(), av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = None
        if audio:
            sound = container.add_stream("libopus" if file.suffix in (".webm", ".mkv") else "aac", rate=48000)
        for index, picture in enumerate(pictures(frames)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
            else:
                frame.pts, frame.time_base = first + index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        if sound is not None:
            container.mux(_silence(sound))
        container.mux(stream.encode(None))
    return file


def write_frames(
    file: Path, frames: Sequence[av.VideoFrame], codec: str, pix_fmt: str, **attributes: object
) -> Path:
    """These very frames at 10 per second; `attributes` are set on the encoder."""
    with ordinary_priority(), av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pix_fmt
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)
        for index, frame in enumerate(frames):
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file


def clip_of(file: Path, path: str = "") -> Clip:
    """What validation says of a good file."""
    reply, _ = answer(Judge(file=str(file), path=path or file.name))
    assert isinstance(reply, Usable), reply
    return reply.clip


def decoded(file: Path, size: Size | None = None) -> list[Picture]:
    """Every frame as a picture, by decoding from the first to the last."""
    with opened(file) as (container, stream):
        developer = Developer(stream, size)
        return [developer.picture(frame) for frame in container.decode(stream)]


def trim_end(file: Path, share: float) -> None:
    """Shorten an mp4's last edit to `share` of its length, as phones do: no frame is removed."""
    content = bytearray(file.read_bytes())
    entries = content.index(b"elst") + 12
    last = entries + 12 * (int.from_bytes(content[entries - 4 : entries]) - 1)
    duration = int.from_bytes(content[last : last + 4])
    content[last : last + 4] = round(duration * share).to_bytes(4)
    file.write_bytes(content)


def declare_frames(file: Path, count: int) -> None:
    """Let an avi's headers promise `count` frames."""
    content = bytearray(file.read_bytes())
    for header, place in ((b"avih", 16), (b"strh", 32)):
        at = content.index(header) + 8 + place
        content[at : at + 4] = count.to_bytes(4, "little")
    file.write_bytes(content)


def write_sound(file: Path) -> Path:
    """An audio file without pictures."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        container.mux(_silence(stream))
    return file


def _silence(stream: av.AudioStream) -> list[av.Packet]:
    packets = []
    for _ in range(40):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1024), np.int16), format="s16", layout="stereo")
        frame.sample_rate = 48000
        packets.extend(stream.encode(frame))
    return [*packets, *stream.encode(None)]


MATROSKA = ("truncated_mkv", "only_headers")


def write_broken(kind: str, folder: Path) -> Path:
    """A file that looks like a clip and is none."""
    file = write_video(folder / f"{kind}.{'mkv' if kind in MATROSKA else 'mp4'}", frames=60)
    content = file.read_bytes()
    match kind:
        case "empty":
            content = b""
        case "text":
            content = b"this is not a video\n" * 50
        case "truncated_mp4" | "truncated_mkv":
            content = content[: len(content) // 2]
        case "only_headers":
            content = content[: content.index(b"\x1f\x43\xb6\x75")]  # up to the first cluster
        case "without_pictures":
            start = content.index(b"mdat")
            end = start - 4 + int.from_bytes(content[start - 4 : start])
            content = content[: start + 4] + bytes(end - start - 4) + content[end:]
        case "overwritten":
            middle = content.index(b"mdat") + 400
            content = content[:middle] + b"\xa5" * 3000 + content[middle + 3000 :]
        case "playlist":
            content = b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"
    file.write_bytes(content)
    return file
