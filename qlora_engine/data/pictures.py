"""From a decoded frame to the picture a model sees: the one place where pixels are made. Free of torch.

Colours, turn and size are settled here for validation, training and whoever looks at the frames, by FFmpeg's
scaler in its bit-exact mode: the same file gives the same bytes on every machine.
"""

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from qlora_engine.data.light import HLG, PQ, to_standard_range

PIXELS_VERSION = 1
"""Raised by whatever changes a pixel, so that frames kept from before are not taken for today's."""
BICUBIC = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
)
"""When it shrinks a picture, this filter grows with the ratio: it is antialiased."""

Picture = NDArray[np.uint8]
"""One RGB frame: height x width x 3."""


class Size(NamedTuple):
    """Of a picture, in pixels."""

    width: int
    height: int


def digest(picture: Picture) -> str:
    """SHA-256 of a picture: ``{width}x{height}\\n`` and then its RGB bytes, row by row."""
    height, width, _ = picture.shape
    content = hashlib.sha256(f"{width}x{height}\n".encode())
    content.update(np.ascontiguousarray(picture).data)
    return content.hexdigest()


def resize(picture: Picture, size: Size) -> Picture:
    """A picture of RGB in another size, by the filter that frames of clips go through."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return _scaled(VideoReformatter(), frame, size)


class Developer:
    """Makes pictures of one clip's frames; keeps the scaler's tables from frame to frame."""

    def __init__(self, stream: Any, size: Size | None = None) -> None:
        """`size` is that of the finished picture; as the clip has it, when absent."""
        self._stream = stream
        self._size = size
        self._scaler = VideoReformatter()
        self._fields: Any = None

    def picture(self, frame: Any) -> Picture:
        """Upright RGB.

        Of an interlaced frame one field is taken, because its two show different moments; transparent parts
        are black; high dynamic range is brought to the standard one.
        """
        turn = turn_of(frame)
        if frame.interlaced_frame:
            frame = self._first_field(frame)
        size = self._size or turn.shape(frame.width, frame.height)
        return turn.apply(self._flat(frame, Size(*turn.shape(*size))))

    def _flat(self, frame: Any, size: Size) -> Picture:
        if any(component.is_alpha for component in frame.format.components):
            frame = av.VideoFrame.from_ndarray(_on_black(frame.to_ndarray(format="rgba")), format="rgb24")
        elif frame.color_trc in (PQ, HLG):
            deep = self._scaler.reformat(
                frame, size.width, size.height, "rgb48le", interpolation=BICUBIC, threads=1
            )
            return to_standard_range(np.asarray(deep.to_ndarray(), np.uint16), int(frame.color_trc))
        return _scaled(self._scaler, frame, size)

    def _first_field(self, frame: Any) -> Any:
        if self._fields is None:
            graph = av.filter.Graph()
            graph.link_nodes(
                graph.add_buffer(
                    width=frame.width,
                    height=frame.height,
                    format=frame.format,
                    time_base=self._stream.time_base,
                ),
                graph.add("field", "type=top"),
                graph.add("buffersink"),
            ).configure()
            self._fields = graph
        self._fields.push(frame)
        return self._fields.pull()


def _scaled(scaler: Any, frame: Any, size: Size) -> Picture:
    scaled = scaler.reformat(frame, size.width, size.height, "rgb24", interpolation=BICUBIC, threads=1)
    return np.asarray(scaled.to_ndarray(), np.uint8)


def _on_black(picture: NDArray[np.uint8]) -> Picture:
    alpha = picture[..., 3:].astype(np.uint16)
    return ((picture[..., :3] * alpha + 127) // 255).astype(np.uint8)


@dataclass(frozen=True)
class Turn:
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

    def shape(self, width: int, height: int) -> Size:
        return Size(height, width) if self.on_its_side else Size(width, height)

    def apply(self, picture: Picture) -> Picture:
        if self.on_its_side:
            picture, down, across = picture.transpose(1, 0, 2), self.b, self.c
        else:
            down, across = self.d, self.a
        return np.ascontiguousarray(picture[:: down or 1, :: across or 1])


def turn_of(frame: Any) -> Turn:
    """What the frame's display matrix asks for."""
    matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return Turn(1, 0, 0, 1)
    a, b, _, c, d = struct.unpack("<5i", bytes(matrix)[:20])
    if abs(a) >= abs(b):
        return Turn(1 if a >= 0 else -1, 0, 0, 1 if d >= 0 else -1)
    return Turn(0, 1 if b > 0 else -1, 1 if c > 0 else -1, 0)
