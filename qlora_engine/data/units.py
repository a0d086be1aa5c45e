"""Where a decoder may start, and what it need not decode: H.264 and H.265 units, read from packets.

Containers mark more key frames than one can start from: pictures after which a stream recovers
only gradually, or approximately. Sources: ITU-T H.264 (7.3.1, 7.3.2.1.1, D.1.8) and H.265 (7.4.2.2). Free of
torch.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_START_CODE = re.compile(rb"\x00\x00\x01")
_H264_SLICES, _H264_IDR, _H264_SEI, _H264_SPS = range(1, 6), 5, 6, 7
_WITH_CHROMA_FORMAT = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
"""Profiles whose parameter sets tell about chroma."""
_RECOVERY_POINT = 6
_HEVC_RANDOM_ACCESS = range(16, 22)


@dataclass(frozen=True)
class Units:
    """How one stream's packets are cut into units; `length_bytes` is 0 where start codes part them."""

    codec: str
    length_bytes: int
    parameters: bytes = b""
    """The stream's first sequence parameter set, if it says that no frame is made of fields."""

    @classmethod
    def of(cls, codec: str, extradata: bytes | None) -> "Units | None":
        """None for a codec whose key frames are always clean."""
        if codec not in ("h264", "hevc"):
            return None
        place = 4 if codec == "h264" else 21
        extradata = extradata or b""
        if extradata[:1] != b"\x01" or len(extradata) <= place:
            sets = [
                unit for unit in cls(codec, 0)._split(extradata) if unit[:1] and unit[0] & 31 == _H264_SPS
            ]
            return cls(codec, 0, _whole_frames(codec, sets))
        length = int.from_bytes(extradata[6:8]) if codec == "h264" else 0
        return cls(codec, (extradata[place] & 3) + 1, _whole_frames(codec, [extradata[8 : 8 + length]]))

    def needless(self, packet: bytes) -> bool:
        """Whether no other frame leans on this one, so that it need not be decoded when it is not wanted."""
        if not self.parameters:
            return False
        slices = 0
        for unit in self._split(packet):
            if not unit:
                continue
            kind = unit[0] & 31
            if kind in _H264_SLICES:
                if unit[0] >> 5:
                    return False
                slices += 1
            elif kind == _H264_SPS and unit.rstrip(b"\0") != self.parameters:
                return False
        return slices > 0

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


def _whole_frames(codec: str, sets: list[bytes]) -> bytes:
    """The parameter set, if there is one and it rules out fields; else nothing."""
    if codec != "h264" or len(sets) != 1 or not sets[0]:
        return b""
    unit = sets[0].rstrip(b"\0")
    bits = _Bits(unit[1:].replace(b"\x00\x00\x03", b"\x00\x00"))
    try:
        return unit if _frames_only(bits) else b""
    except IndexError:
        return b""


def _frames_only(bits: "_Bits") -> bool:
    """frame_mbs_only_flag of a sequence parameter set; False where finding it takes scaling lists."""
    profile = bits.take(8)
    bits.take(16)
    bits.number()
    if profile in _WITH_CHROMA_FORMAT:
        if bits.number() == 3:
            bits.take(1)
        bits.number()
        bits.number()
        bits.take(1)
        if bits.take(1):
            return False
    bits.number()
    order = bits.number()
    if order == 0:
        bits.number()
    elif order == 1:
        bits.take(1)
        bits.number()
        bits.number()
        for _ in range(bits.number()):
            bits.number()
    bits.number()
    bits.take(1)
    bits.number()
    bits.number()
    return bits.take(1) == 1


class _Bits:
    """Reads numbers bit by bit.

    Raises:
        IndexError: there are no more.
    """

    def __init__(self, content: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in content)
        self._place = 0

    def take(self, count: int) -> int:
        """A number of `count` bits."""
        taken = self._bits[self._place : self._place + count]
        if len(taken) < count:
            raise IndexError
        self._place += count
        return int(taken, 2)

    def number(self) -> int:
        """A number in Exp-Golomb code; the sign of a signed one is of no interest."""
        zeros = 0
        while self.take(1) == 0:
            zeros += 1
        return (1 << zeros) - 1 + (self.take(zeros) if zeros else 0)
