"""Where a decoder may start without the frames before: H.264 and H.265 units, read from packets.

Containers mark more than that as key frames: pictures after which a stream recovers only gradually, or
approximately. Sources: ITU-T H.264 (7.3.1, D.1.8) and H.265 (7.4.2.2).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_START_CODE = re.compile(rb"\x00\x00\x01")
_H264_IDR, _H264_SEI = 5, 6
_RECOVERY_POINT = 6
_HEVC_RANDOM_ACCESS = range(16, 22)


@dataclass(frozen=True)
class Units:
    """How one stream's packets are cut into units; `length_bytes` is 0 where start codes part them."""

    codec: str
    length_bytes: int

    @classmethod
    def of(cls, codec: str, extradata: bytes | None) -> "Units | None":
        """None for a codec whose key frames are always clean."""
        if codec not in ("h264", "hevc"):
            return None
        place = 4 if codec == "h264" else 21
        if not extradata or extradata[0] != 1 or len(extradata) <= place:
            return cls(codec, 0)
        return cls(codec, (extradata[place] & 3) + 1)

    def starts_anew(self, packet: bytes) -> bool:
        """Whether this frame, and all that are shown after it, decode exactly without earlier ones."""
        for unit in self._split(packet):
            if not unit:
                continue
            if self.codec == "hevc":
                if (unit[0] >> 1) & 63 in _HEVC_RANDOM_ACCESS:
                    return True
            elif unit[0] & 31 == _H264_IDR or (unit[0] & 31 == _H264_SEI and _recovers_at_once(unit[1:])):
                return True
        return False

    def _split(self, packet: bytes) -> Iterator[bytes]:
        if self.length_bytes == 0:
            places = [match.end() for match in _START_CODE.finditer(packet)]
            for start, end in zip(places, [*(place - 3 for place in places[1:]), len(packet)], strict=True):
                yield packet[start:end]
            return
        place = 0
        while place + self.length_bytes < len(packet):
            length = int.from_bytes(packet[place : place + self.length_bytes])
            place += self.length_bytes
            yield packet[place : place + length]
            place += length


def _recovers_at_once(message: bytes) -> bool:
    """Whether supplemental information says: exact from this very picture on."""
    message = message.replace(b"\x00\x00\x03", b"\x00\x00")
    place = 0
    while place + 2 <= len(message):
        numbers = []
        for _ in ("type", "length"):
            value = 0
            while place < len(message) and message[place] == 255:
                value, place = value + 255, place + 1
            if place >= len(message):
                return False
            numbers.append(value + message[place])
            place += 1
        if numbers[0] == _RECOVERY_POINT:
            # recovery_frame_cnt in Exp-Golomb code, where 0 is the bit 1, and then exact_match_flag
            return place < len(message) and message[place] >> 6 == 0b11
        place += numbers[1]
    return False
