"""A tree that grows by leaves and tells which of its tiles changed: the pure part of keeping trees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas import merkle
from schemas.merkle import TILE_WIDTH, Tile


@dataclass(frozen=True, slots=True)
class KeptTile:
    """A tile as it is stored. Only tiles of leaves have positions."""

    tile: Tile
    hashes: bytes
    positions: tuple[int, ...] = ()


class TileMissing(Exception):
    """A stored tile is not there, or does not hold what the tree's size says."""


@dataclass
class GrowingTiles:
    """One organization's tree: its size, and the tiles that are begun and not full."""

    size: int = 0
    changed: dict[Tile, KeptTile] = field(default_factory=dict)
    """Tiles that became full."""
    _open: list[list[bytes]] = field(default_factory=lambda: [[]])
    _positions: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, size: int, tiles: Mapping[Tile, KeptTile]) -> "GrowingTiles":
        """The tree of `size` leaves, from its open tiles.

        Raises:
            TileMissing: when `tiles` are not those of such a tree.
        """
        tree = cls(size)
        level, left = 0, size
        while left:
            count = left % TILE_WIDTH
            found = tiles.get(Tile(level, left // TILE_WIDTH)) if count else None
            hashes = merkle.split(found.hashes) if found is not None else []
            if len(hashes) != count or (level == 0 and found is not None and len(found.positions) != count):
                raise TileMissing(f"tile {left // TILE_WIDTH} of level {level} of a tree of {size} leaves")
            if level == 0 and found is not None:
                tree._positions = list(found.positions)
            tree._at(level)[:] = hashes
            left //= TILE_WIDTH
            level += 1
        return tree

    def append(self, position: int, leaf: bytes) -> None:
        """Add a leaf at the end."""
        self.size += 1
        self._positions.append(position)
        self._open[0].append(leaf)
        if len(self._open[0]) == TILE_WIDTH:
            self._close(0)

    def root(self) -> bytes:
        """The root over everything so far."""
        carried: list[bytes] = []
        for hashes in self._open:
            row = hashes + carried
            carried = [merkle.root_of(row)] if row else []
        return carried[0] if carried else merkle.EMPTY_ROOT

    def tiles(self) -> Sequence[KeptTile]:
        """Every tile to be stored: those that became full, and those that are open."""
        left, begun = self.size, []
        for level, hashes in enumerate(self._open):
            if hashes:
                positions = tuple(self._positions) if level == 0 else ()
                begun.append(KeptTile(Tile(level, left // TILE_WIDTH), b"".join(hashes), positions))
            left //= TILE_WIDTH
        return [*self.changed.values(), *begun]

    def _close(self, level: int) -> None:
        hashes = self._open[level]
        tile = Tile(level, (self.size - 1) >> (merkle.TILE_LEVELS * (level + 1)))
        positions = tuple(self._positions) if level == 0 else ()
        self.changed[tile] = KeptTile(tile, b"".join(hashes), positions)
        above = self._at(level + 1)
        above.append(merkle.root_of(hashes))
        hashes.clear()
        if level == 0:
            self._positions.clear()
        if len(above) == TILE_WIDTH:
            self._close(level + 1)

    def _at(self, level: int) -> list[bytes]:
        while len(self._open) <= level:
            self._open.append([])
        return self._open[level]
