"""The wanted frames of a clip with the least decoding: by seeking, by decoding on, or by both in turn.

The packets are read once without decoding, which tells when each frame is shown and where a decoder may
start. Whatever is chosen, the frames are those of a full decode: groups that lean on one another are decoded
from where they really begin, and a file whose packets promise what does not decode is left to whoever counts
frames. Free of torch.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from qlora_engine.data.units import Units

Plan = Literal["best", "seek", "scan"]
"""`seek` always starts at the nearest place, `scan` never leaves the beginning: both only to compare with."""
WORTH_A_JUMP = 2
"""Frames that must be saved before the decoder is emptied and started elsewhere."""
WORTH_A_SEEK = 250
"""Packets that are read and dropped in about the time of a seek in the container."""

Identity = tuple[int, int | None, int]


class Packet(NamedTuple):
    """What is kept of one."""

    pts: int
    dts: int | None
    size: int
    fresh: bool
    """A decoder may start here."""
    shown: bool
    """False for what an edit list cuts away; it is still decoded, because others lean on it."""

    @property
    def identity(self) -> Identity:
        return self.pts, self.dts, self.size


@dataclass(frozen=True)
class Index:
    """A stream's packets in decoding order."""

    packets: tuple[Packet, ...]
    last_duration: int
    """Of the frame shown last, in ticks; 0 when unknown."""
    units: Units | None = None

    @cached_property
    def stamps(self) -> list[int]:
        """Of the shown frames, in the order in which they are shown."""
        return sorted(packet.pts for packet in self.packets if packet.shown)

    @cached_property
    def places(self) -> dict[int, int]:
        """Place in decoding order by presentation stamp, of shown frames."""
        return {packet.pts: place for place, packet in enumerate(self.packets) if packet.shown}

    @cached_property
    def identities(self) -> dict[Identity, int]:
        return {packet.identity: place for place, packet in enumerate(self.packets)}

    @cached_property
    def _fresh(self) -> list[int]:
        return [place for place, packet in enumerate(self.packets) if packet.fresh]

    def start_for(self, place: int) -> int:
        """The latest place from which the frame at `place` decodes exactly.

        A frame shown before the picture that its group starts with leans on the group before, too.
        """
        for start in reversed(self._fresh[: bisect_right(self._fresh, place)]):
            if self.packets[start].pts <= self.packets[place].pts:
                return start
        return 0


def read_index(container: Any, stream: Any) -> Index | None:
    """None when the packets do not tell when frames are shown."""
    if container.format.name == "avi":  # it keeps no presentation times, which matters with B-frames
        return None
    context = stream.codec_context
    units = Units.of(context.codec.canonical_name, context.extradata)
    packets: list[Packet] = []
    last = (-(1 << 63), 0)
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if packet.pts is None:
            return None
        fresh = packet.is_keyframe and (units is None or units.starts_anew(bytes(packet)))
        packets.append(Packet(packet.pts, packet.dts, packet.size, fresh, not packet.is_discard))
        if not packet.is_discard:
            last = max(last, (packet.pts, packet.duration or 0))
    index = Index(tuple(packets), last[1], units)
    shown = index.stamps
    if not shown or len(set(shown)) < len(shown) or len(index.identities) < len(packets):
        return None
    return index


def stretches(index: Index, wanted: Sequence[int], plan: Plan = "best") -> list[tuple[int, int]]:
    """First and last place of each stretch to decode for frames with these stamps, in decoding order.

    Two are one where a jump would save too little, or where the later one needs what the earlier begins with.
    """
    least = {"best": WORTH_A_JUMP, "seek": 1, "scan": len(index.packets) + 1}[plan]
    found: list[tuple[int, int]] = []
    for place in sorted(index.places[stamp] for stamp in wanted):
        start = 0 if plan == "scan" else index.start_for(place)
        while found and start - found[-1][1] - 1 < least:
            start = min(start, found.pop()[0])
        found.append((start, place))
    return found


@dataclass
class Walk:
    """One way through a container, forward only; at each gap it is decided whether to jump."""

    container: Any
    stream: Any
    index: Index
    plan: Plan = "best"
    decoded: int = 0
    """Packets that went through the decoder."""

    def collect(self, wanted: Sequence[int], keep: Callable[[int, Any], None]) -> bool:
        """Hand every wanted frame to `keep` with its presentation stamp, in no particular order.

        False when the file does not decode to what its packets say.

        Raises:
            LookupError: a seek does not reach the packets that were read before.
        """
        missing = set(wanted)
        context = self.stream.codec_context

        def pick(frames: Sequence[Any]) -> None:
            for frame in frames:
                if frame.pts in missing and not frame.is_corrupt:
                    missing.discard(frame.pts)
                    keep(frame.pts, frame)

        place, packets = 0, None
        for start, last in stretches(self.index, wanted, self.plan):
            if packets is not None:
                pick(context.decode(None))
                context.flush_buffers()
            if packets is None or start - place > WORTH_A_SEEK:
                packets = self._from(start)
            else:
                packets = _later(packets, start - place)
            for packet in _next(packets, last + 1 - start):
                if packet.pts in missing or not self._needless(packet):
                    pick(context.decode(packet))
                    self.decoded += 1
            place = last + 1
        pick(context.decode(None))
        return not missing

    def _needless(self, packet: Any) -> bool:
        units = self.index.units
        return self.plan == "best" and units is not None and units.needless(bytes(packet))

    def _from(self, place: int) -> Iterator[Any]:
        """The packets from `place` on; those before it are read and dropped where a seek lands early.

        Raises:
            LookupError: they are not to be found.
        """
        first = self.index.packets[place]
        origin = self.index.packets[0]
        for stamp in dict.fromkeys((_stamp(first), _stamp(origin), min(self.index.stamps[0], 0))):
            self.container.seek(stamp, stream=self.stream, backward=True)
            packets = (packet for packet in self.container.demux(self.stream) if packet.size)
            for packet in packets:
                landed = self.index.identities.get((packet.pts, packet.dts, packet.size))
                if landed is None or landed > place:
                    break
                if landed == place:
                    return _chained(packet, packets)
        raise LookupError(f"no seek reaches packet {place}")


def _stamp(packet: Packet) -> int:
    return packet.pts if packet.dts is None else packet.dts


def _next(packets: Iterator[Any], count: int) -> Iterator[Any]:
    """
    Raises:
        LookupError: there are no more.
    """
    for _ in range(count):
        packet = next(packets, None)
        if packet is None:
            raise LookupError("the packets end early")
        yield packet


def _later(packets: Iterator[Any], count: int) -> Iterator[Any]:
    """Those that come after the next `count`."""
    for _ in _next(packets, count):
        pass
    return packets


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
