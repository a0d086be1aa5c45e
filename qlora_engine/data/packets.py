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
from typing import Any, Literal

from qlora_engine.data.units import Units

Plan = Literal["best", "seek", "scan"]
"""`seek` always starts at the nearest place, `scan` never leaves the beginning: both only to compare with."""
WORTH_A_JUMP = 2
"""Frames that must be saved before the decoder is emptied and started elsewhere."""
WORTH_A_SEEK = 250
"""Packets that are read and dropped in about the time of a seek in the container."""

Identity = tuple[int, int | None, int]


@dataclass(frozen=True)
class Packet:
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
    index = Index(tuple(packets), last[1])
    shown = index.stamps
    if not shown or len(set(shown)) < len(shown) or len(index.identities) < len(packets):
        return None
    return index


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

        targets = sorted(self.index.places[stamp] for stamp in wanted)
        place = 0 if self.plan == "scan" else self.index.start_for(targets[0])
        packets = self._from(place)
        for target in targets:
            start = self.index.start_for(target)
            if self._jumps(place, start):
                pick(context.decode(None))
                context.flush_buffers()
                packets = (
                    self._from(start) if start - place > WORTH_A_SEEK else _later(packets, start - place)
                )
                place = start
            for packet in _next(packets, target + 1 - place):
                pick(context.decode(packet))
                self.decoded += 1
            place = target + 1
        pick(context.decode(None))
        return not missing

    def _jumps(self, place: int, start: int) -> bool:
        if self.plan == "scan":
            return False
        return start - place >= (1 if self.plan == "seek" else WORTH_A_JUMP)

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
