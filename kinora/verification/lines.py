"""Reads export lines and leaf files: fast where all is well, exact where it is not.

An export line is the stored event with position and source in front; its leaf hash is made of the exact
bytes, so nothing of an event is parsed.
"""

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from schemas import merkle
from schemas.errors import KinoraError

Report = Callable[[str, int, int], None]
"""What is being done, how many bytes of it, of how many."""

_BEGIN = b'{"position":'
_REPORT_EVERY = 4096
_DIGITS = 19
"""Of the greatest position."""
_GREATEST = 2**63 - 1

_pack_leaf = struct.Struct(">xQc").pack
"""0x00, the position, and the brace that the stored bytes begin with."""


class FileUnfit(KinoraError):
    """A file is not what `kinora events verify` takes."""

    code = "file_unfit"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an export, taken apart as far as it can be."""

    file: Path
    number: int
    """From 1 on, in its file."""
    position: int | None
    """None when the line does not begin as lines of this log do."""
    state: bytes
    raw: bytes

    @property
    def leaf(self) -> bytes:
        """Its leaf hash."""
        return b"" if self.position is None else merkle.hash_event(self.position, self.state)


def take_apart(raw: bytes, source: str) -> tuple[int | None, bytes]:
    """Position and stored bytes of a line without its end, as `schemas.envelope.public_bytes` joined them."""
    marker = _marker(source)
    end = raw.find(marker, len(_BEGIN), len(_BEGIN) + _DIGITS + len(marker))
    digits = raw[len(_BEGIN) : end]
    if end < 0 or not raw.startswith(_BEGIN) or not digits.isdigit() or digits.startswith(b"0"):
        return None, b""
    return int(digits), b"{" + raw[end + len(marker) :]


def _marker(source: str) -> bytes:
    return b',"source":"' + source.encode() + b'",'


def lines(files: Sequence[Path], source: str) -> Iterator[Line]:
    """Every line of the files, one after the other."""
    for file in files:
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                text = raw[:-1] if raw.endswith(b"\n") else raw
                yield Line(file, number, *take_apart(text, source), text)


class Mark(NamedTuple):
    """A tree when it was of some size."""

    root: bytes
    position: int
    """Of its last leaf."""


@dataclass
class Recomputed:
    """What the lines of an export give, up to a position."""

    tree: merkle.GrowingTree = field(default_factory=merkle.GrowingTree)
    beyond: int = 0
    """Lines behind that position: no head vouches for them yet."""
    broken: bool = False
    """A line does not begin as lines of this log do, or stands behind a later one: reading ended there."""
    marks: dict[int, Mark] = field(default_factory=dict)
    """Of the sizes that were asked for."""


def recompute(
    files: Sequence[Path], source: str, until: int, sizes: frozenset[int], report: Report
) -> Recomputed:
    """The tree over all lines up to the position `until`, and its marks at `sizes`.

    The loop below is what verification costs: two or three hashes and some slices a line.
    """
    found = Recomputed()
    total, seen = sum(file.stat().st_size for file in files), 0
    marker, begin = _marker(source), len(_BEGIN)
    width, furthest = len(marker), begin + _DIGITS + len(marker)
    add, pack, hashed, last = found.tree.append, _pack_leaf, sha256, 0
    for file in files:
        with file.open("rb", buffering=2**20) as stream:
            for count, line in enumerate(stream):
                if not count % _REPORT_EVERY:
                    report("events", seen, total)
                seen += len(line)
                end = line.find(marker, begin, furthest)
                digits = line[begin:end]
                if end < 0 or not digits.isdigit() or digits[0] == 48 or not line.startswith(_BEGIN):
                    found.broken = True
                    return found
                position = int(digits)
                if position <= last:
                    found.broken = True
                    return found
                last = position
                if position > until:
                    found.beyond += 1
                    continue
                stop = -1 if line[-1] == 10 else None
                add(hashed(pack(position, b"{") + line[end + width : stop]).digest())
                if sizes and found.tree.size in sizes:
                    found.marks[found.tree.size] = Mark(found.tree.root(), position)
    report("events", total, total)
    return found


@dataclass
class LeafFile:
    """Positions and leaf hashes of an organization, as the service lists them."""

    positions: "array[int]"
    hashes: bytearray

    def hash(self, index: int) -> bytes:
        """The leaf hash of the leaf at an index."""
        return bytes(self.hashes[index * merkle.HASH_BYTES : (index + 1) * merkle.HASH_BYTES])

    def between(self, after: int, until: int) -> "LeafFile":
        """The leaves behind `after`, up to `until`."""
        first, last = bisect_right(self.positions, after), bisect_right(self.positions, until)
        return LeafFile(
            self.positions[first:last],
            self.hashes[first * merkle.HASH_BYTES : last * merkle.HASH_BYTES],
        )

    def holds(self, position: int) -> bool:
        """Whether there is a leaf of that position."""
        place = bisect_left(self.positions, position)
        return place < len(self.positions) and self.positions[place] == position

    def marks(self, sizes: frozenset[int]) -> dict[int, Mark]:
        """Of the sizes that are asked for and reached. Positions are as the file says, unsigned."""
        tree, found = merkle.GrowingTree(), {}
        for index in range(min(max(sizes, default=0), len(self.positions))):
            tree.append(self.hash(index))
            if tree.size in sizes:
                found[tree.size] = Mark(tree.root(), self.positions[index])
        return found

    @classmethod
    def read(cls, file: Path, report: Report) -> "LeafFile":
        """Read a leaf file.

        Raises:
            FileUnfit: when a line is not a position and a hash, or positions do not grow.
        """
        positions, hashes, last = array("Q"), bytearray(), 0
        total = file.stat().st_size
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    position, _, digest = line.partition(b" ")
                    place, leaf = int(position), bytes.fromhex(digest.decode("ascii"))
                except ValueError:
                    place, leaf = 0, b""
                if not last < place <= _GREATEST or len(leaf) != merkle.HASH_BYTES:
                    raise FileUnfit(
                        f"{file} line {number} is no position behind the one before, and a leaf hash;"
                        " delete the file and fetch it again"
                    )
                positions.append(place)
                hashes += leaf
                last = place
                if not number % _REPORT_EVERY:
                    report("leaves", len(hashes) * 2, total)
        return cls(positions, hashes)
