"""Merkle trees of RFC 6962 shape over the events of an organization: leaves, roots, proofs and their checks.

Pure and of the standard library alone, because the control plane and whoever verifies offline need it. RFC
6962 section 2.1 defines hashes and proofs, RFC 9162 section 2.1 the steps of checking them. A tree is known
by its complete subtrees: `(level, number)` is the one over the leaves ``number * 2**level`` and following,
``2**level`` of them; any root and any proof needs only O(log n) of these.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()
"""The root of a tree without leaves."""

_LEAF = b"\x00"
_NODE = b"\x01"


class Subtree(NamedTuple):
    """A complete subtree: the 2**level leaves from ``number * 2**level`` on."""

    level: int
    number: int


class Span(NamedTuple):
    """The leaves from `begin` up to, not including, `end`, as one node of some tree."""

    begin: int
    end: int


HashOf = Callable[[Subtree], bytes]


def hash_entry(entry: bytes) -> bytes:
    """The leaf hash of an entry of a tree."""
    return sha256(_LEAF + entry).digest()


def hash_event(position: int, state: bytes) -> bytes:
    """The leaf hash of an event: its entry is the position, as 8 bytes big-endian, and the stored bytes."""
    return sha256(_LEAF + position.to_bytes(8, "big") + state).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(_NODE + left + right).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes."""
    row = list(leaves)
    if not row:
        return EMPTY_ROOT
    while len(row) > 1:
        above = [hash_node(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)]
        if len(row) % 2:
            above.append(row[-1])  # what has no neighbour moves up as it is
        row = above
    return row[0]


class GrowingTree:
    """Takes leaf hashes one by one and knows the root; holds O(log n) hashes."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash at the end."""
        peaks, size = self._peaks, self.size
        while size & 1:
            leaf = sha256(_NODE + peaks.pop() + leaf).digest()
            size >>= 1
        peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root over everything appended so far."""
        return _joined(self._peaks)


# ---- what a root or proof consists of -----------------------------------------------------------------


def subtrees(span: Span) -> list[Subtree]:
    """The complete subtrees that make up a node's leaves, the largest first."""
    found, begin, left = [], span.begin, span.end - span.begin
    while left:
        level = left.bit_length() - 1
        found.append(Subtree(level, begin >> level))
        begin += 1 << level
        left -= 1 << level
    return found


def inclusion_spans(index: int, size: int) -> list[Span]:
    """The nodes of the proof that leaf `index` is in the tree of `size` leaves, in the order of the proof.

    Raises:
        ValueError: when there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    found, begin, end = [], 0, size
    while end - begin > 1:
        middle = begin + _half(end - begin)
        if index < middle:
            found.append(Span(middle, end))
            end = middle
        else:
            found.append(Span(begin, middle))
            begin = middle
    return found[::-1]


def consistency_spans(old: int, new: int) -> list[Span]:
    """The nodes of the proof that the tree of `new` leaves begins with the one of `old`, in its order.

    Raises:
        ValueError: when there is nothing to prove: unless 0 < old <= new.
    """
    if not 0 < old <= new:
        raise ValueError(f"a tree of {new} leaves cannot be shown to begin with one of {old}")
    found, begin, end, whole = [], 0, new, True
    while old != end:
        middle = begin + _half(end - begin)
        if old <= middle:
            found.append(Span(middle, end))
            end = middle
        else:
            found.append(Span(begin, middle))
            begin, whole = middle, False
    if not whole:  # where it is, the old root says it
        found.append(Span(begin, end))
    return found[::-1]


def span_hash(span: Span, hash_of: HashOf) -> bytes:
    """The hash of a node, from the complete subtrees below it."""
    return _joined([hash_of(subtree) for subtree in subtrees(span)])


def root_at(size: int, hash_of: HashOf) -> bytes:
    """The root that the tree had when it was of `size` leaves."""
    return span_hash(Span(0, size), hash_of)


def _joined(peaks: Sequence[bytes]) -> bytes:
    if not peaks:
        return EMPTY_ROOT
    joined = peaks[-1]
    for peak in reversed(peaks[:-1]):
        joined = hash_node(peak, joined)
    return joined


def _half(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)


# ---- tiles: 256 neighbouring hashes of every eighth level ---------------------------------------------

TILE_LEVELS = 8
TILE_WIDTH = 1 << TILE_LEVELS


class Tile(NamedTuple):
    """Up to 256 hashes: of the subtrees of level ``8 * level`` from ``256 * number`` on."""

    level: int
    number: int


def tile_of(subtree: Subtree) -> Tile:
    """The tile whose hashes give the subtree's."""
    within = subtree.level % TILE_LEVELS
    return Tile(subtree.level // TILE_LEVELS, subtree.number << within >> TILE_LEVELS)


def hash_in_tile(subtree: Subtree, hashes: bytes) -> bytes:
    """The hash of a subtree, from the hashes of `tile_of` it.

    Raises:
        ValueError: when the tile does not reach so far yet.
    """
    within = subtree.level % TILE_LEVELS
    first = (subtree.number << within) % TILE_WIDTH
    taken = split(hashes[first * HASH_BYTES : (first + (1 << within)) * HASH_BYTES])
    if len(taken) != 1 << within:
        raise ValueError(f"the tile of {subtree} ends before it")
    return root_of(taken)


def open_tiles(size: int) -> list[Tile]:
    """The tiles of a tree of `size` leaves that are begun and not full, from the leaves up."""
    found, level = [], 0
    while size:
        if size % TILE_WIDTH:
            found.append(Tile(level, size // TILE_WIDTH))
        size //= TILE_WIDTH
        level += 1
    return found


def split(hashes: bytes) -> list[bytes]:
    """Joined hashes, one by one."""
    return [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]


# ---- checking proofs: RFC 9162, 2.1.3.2 and 2.1.4.2 ---------------------------------------------------


def includes(leaf: bytes, index: int, size: int, path: Iterable[bytes], root: bytes) -> bool:
    """Whether the path proves that `leaf` is leaf `index` of the tree of `size` leaves with this root."""
    if not 0 <= index < size:
        return False
    number, last, computed = index, size - 1, leaf
    for step in path:
        if last == 0:
            return False
        if number & 1 or number == last:
            computed = hash_node(step, computed)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            computed = hash_node(computed, step)
        number, last = number >> 1, last >> 1
    return last == 0 and computed == root


def begins_with(old: int, old_root: bytes, new: int, new_root: bytes, path: Iterable[bytes]) -> bool:
    """Whether the path proves that the tree of `new` leaves begins with the one of `old` leaves."""
    steps: Iterator[bytes] = iter(path)
    if not 0 <= old <= new:
        return False
    if old in (0, new):
        expected = EMPTY_ROOT if old == 0 else new_root
        return old_root == expected and next(steps, None) is None
    # Of a whole power of two, the old root is a node of the new tree: the path leaves it out.
    first = old_root if old & (old - 1) == 0 else next(steps, None)
    if first is None:
        return False
    number, last = old - 1, new - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    computed_old = computed_new = first
    for step in steps:
        if last == 0:
            return False
        if number & 1 or number == last:
            computed_old = hash_node(step, computed_old)
            computed_new = hash_node(step, computed_new)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            computed_new = hash_node(computed_new, step)
        number, last = number >> 1, last >> 1
    return last == 0 and computed_old == old_root and computed_new == new_root
