"""Shows the very frames that a training takes of a clip: times, digests, and a sheet of them as a PNG file.

Run: ``python -m qlora_engine.data.show CLIP [--frames N] [--size 512] [--sheet FILE]``, or with ``--help``.

They are made as training makes them, and the sheet is without loss: its pictures have the digests that are
printed, and so have the tensors of a training that takes as many frames in this size.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from qlora_engine.data.pictures import Picture, Size
from qlora_engine.data.sampling import Sampling
from qlora_engine.data.video import sample_clip
from qlora_engine.errors import ClipError
from schemas.base import Message

MARGIN = 4
DIGIT_ROWS, DIGIT_COLUMNS, SCALE = 5, 3, 2
LABEL = DIGIT_ROWS * SCALE + 2 * MARGIN
"""Height of the line under a picture."""
WIDEST = 2048
"""Pixels in a sheet's row."""
GREY, WHITE = 32, 240
_FONT = {
    "0": "111101101101111",
    "1": "010110010010111",
    "2": "111001111100111",
    "3": "111001111001111",
    "4": "101101111001001",
    "5": "111100111001111",
    "6": "111100111101111",
    "7": "111001010010010",
    "8": "111101111101111",
    "9": "111101111001111",
    ".": "000000000000010",
}
"""Digits of 3 x 5 dots, row by row."""


class ShownFrame(Message):
    """One picture that a model gets to see."""

    seconds: float
    """When it is shown, from the clip's first frame."""
    source_sha256: str
    """Of the picture in the clip's own size: ``{width}x{height}\\n`` and then RGB bytes, row by row."""
    sha256: str
    """Of the picture in the model's size."""


@dataclass(frozen=True)
class ShownClip:
    """What is taken of a clip."""

    frames: tuple[ShownFrame, ...]
    pictures: tuple[Picture, ...]
    duration: float


def show(file: Path, sampling: Sampling, size: Size | None) -> ShownClip:
    """
    Raises:
        ClipError: the clip cannot be decoded, or cannot give these frames.
    """
    sampled = sample_clip(file, sampling, size, source_digests=True)
    frames = tuple(
        ShownFrame(seconds=seconds, source_sha256=source, sha256=small)
        for seconds, source, small in zip(
            sampled.seconds, sampled.source_digests, sampled.digests, strict=True
        )
    )
    return ShownClip(frames, sampled.pictures, sampled.duration)


def place(number: int, size: Size, across: int) -> tuple[int, int]:
    """Left and top of picture `number` on a sheet with `across` in a row."""
    down, right = divmod(number, across)
    return MARGIN + right * (size.width + MARGIN), MARGIN + down * (size.height + LABEL)


def pictures_across(size: Size, count: int) -> int:
    """How many fit into a row of a sheet."""
    return max(1, min(count, (WIDEST - MARGIN) // (size.width + MARGIN)))


def sheet(clip: ShownClip) -> Picture:
    """All pictures with their seconds beneath, row by row."""
    height, width, _ = clip.pictures[0].shape
    size = Size(width, height)
    across = pictures_across(size, len(clip.pictures))
    down = -(-len(clip.pictures) // across)
    drawn = np.full(
        (MARGIN + down * (height + LABEL), MARGIN + across * (width + MARGIN), 3), GREY, dtype=np.uint8
    )
    for number, (picture, frame) in enumerate(zip(clip.pictures, clip.frames, strict=True)):
        left, top = place(number, size, across)
        drawn[top : top + height, left : left + width] = picture
        _write(drawn[top + height + MARGIN :, left : left + width], f"{frame.seconds:.3f}")
    return drawn


def png(picture: Picture) -> bytes:
    """The picture as a PNG file."""
    codec = av.CodecContext.create("png", "w")
    assert isinstance(codec, av.VideoCodecContext)  # noqa: S101 - an invariant
    codec.height, codec.width, _ = picture.shape
    codec.pix_fmt = "rgb24"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def _write(where: Picture, text: str) -> None:
    """Draw `text` at the upper left, as much of it as there is room for."""
    for number, character in enumerate(text):
        dots = np.array([int(dot) for dot in _FONT[character]], bool).reshape(DIGIT_ROWS, DIGIT_COLUMNS)
        dots = dots.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        left = number * (DIGIT_COLUMNS + 1) * SCALE
        room = where[: DIGIT_ROWS * SCALE, left : left + DIGIT_COLUMNS * SCALE]
        if room.shape[:2] == dots.shape:
            room[dots] = WHITE


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 when the clip cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m qlora_engine.data.show",
        description="Show the frames that a training takes of a clip.",
    )
    parser.add_argument("clip", type=Path)
    parser.add_argument("--frames", type=int, default=4, help="evenly spaced in time (default 4)")
    parser.add_argument("--frames-per-second", type=float, help="instead of --frames")
    parser.add_argument("--min-frames", type=int, default=1, help="with --frames-per-second")
    parser.add_argument("--max-frames", type=int, help="with --frames-per-second")
    parser.add_argument(
        "--size", type=int, help="side of the model's square; the clip's own size when absent"
    )
    parser.add_argument("--sheet", type=Path, help="PNG file to write the pictures to")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    given = parser.parse_args(arguments)
    sampling = Sampling(
        frames=given.frames,
        frames_per_second=given.frames_per_second,
        min_frames=given.min_frames,
        max_frames=given.max_frames,
    )
    try:
        shown = show(given.clip, sampling, None if given.size is None else Size(given.size, given.size))
    except (ClipError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - this is the command's output
        return 1
    if given.sheet is not None:
        given.sheet.write_bytes(png(sheet(shown)))
    for line in _lines(shown, as_json=given.json):
        print(line)  # noqa: T201 - this is the command's output
    return 0


def _lines(shown: ShownClip, *, as_json: bool) -> list[str]:
    if as_json:
        frames = [frame.model_dump(mode="json") for frame in shown.frames]
        return [json.dumps({"duration_seconds": shown.duration, "frames": frames})]
    rows = [f"{frame.seconds:9.3f} s  {frame.source_sha256}  {frame.sha256}" for frame in shown.frames]
    return [f"{'shown at':>11}  {'SHA-256 in its own size':64}  SHA-256 in the model's", *rows]


if __name__ == "__main__":
    sys.exit(main())
