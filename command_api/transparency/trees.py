"""Brings the stored trees level with the log, page by page: trees, tiles and checkpoint in one commit.

Nothing is remembered between pages, so a keeper may be killed, or doubled, at any moment. Where heads were
signed before (the trees are being made again), every root that they name is compared on the way.
"""

import asyncio
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import LiteralString

from psycopg import AsyncConnection

from command_api.transparency.errors import LogContradicted
from command_api.transparency.growth import GrowingTiles, KeptTile
from schemas import merkle
from schemas.heads import NOBODY
from schemas.merkle import Tile

PAGE_EVENTS = 5000

_BEGIN: LiteralString = "INSERT INTO kinora_merkle_checkpoint DEFAULT VALUES ON CONFLICT DO NOTHING"
_CHECKPOINT: LiteralString = "SELECT position FROM kinora_merkle_checkpoint FOR UPDATE"
# The database hashes: an event's leaf is `schemas.merkle.hash_event` of it, and its bytes need not travel.
LEAVES: LiteralString = rf"""
SELECT notification_id, coalesce(organization_id, '{NOBODY}'),
       sha256('\x00'::bytea || int8send(notification_id) || state)
  FROM kinora_events WHERE notification_id > %s ORDER BY notification_id LIMIT %s
"""  # noqa: S608 - only a constant is put in
_SIZES: LiteralString = "SELECT organization, size FROM kinora_merkle_trees WHERE organization = ANY(%s)"
TILES: LiteralString = """
SELECT t.organization, t.level, t.number, t.hashes, t.positions
  FROM unnest(%s::text[], %s::smallint[], %s::bigint[]) AS wanted (organization, level, number)
  JOIN kinora_merkle_tiles t USING (organization, level, number)
"""
_SIGNED: LiteralString = """
SELECT t.organization, h.position, t.size, t.root, h.number
  FROM kinora_heads h JOIN kinora_head_trees t USING (number)
 WHERE h.position > %s AND h.position <= %s ORDER BY h.number
"""
_SAVE_TILES: LiteralString = """
INSERT INTO kinora_merkle_tiles
       (organization, level, number, hashes, positions, first_position, last_position)
SELECT * FROM unnest(%s::text[], %s::smallint[], %s::bigint[], %s::bytea[], %s::bytea[],
                     %s::bigint[], %s::bigint[])
ON CONFLICT (organization, level, number) DO UPDATE
   SET hashes = excluded.hashes, positions = excluded.positions,
       first_position = excluded.first_position, last_position = excluded.last_position
"""
_SAVE_TREES: LiteralString = """
INSERT INTO kinora_merkle_trees (organization, size, root)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bytea[])
ON CONFLICT (organization) DO UPDATE SET size = excluded.size, root = excluded.root
"""
_SAVE_CHECKPOINT: LiteralString = "UPDATE kinora_merkle_checkpoint SET position = %s"
FORGET: tuple[LiteralString, ...] = (
    "DELETE FROM kinora_merkle_tiles",
    "DELETE FROM kinora_merkle_trees",
    "UPDATE kinora_merkle_checkpoint SET position = 0, checked_position = 0",
)
"""Has all trees made again."""

TileKey = tuple[str, Tile]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One event as a leaf of its organization's tree."""

    position: int
    organization: str
    hash: bytes


@dataclass(frozen=True, slots=True)
class SignedTree:
    """What a head says of one tree that had grown."""

    organization: str
    position: int
    """Of the head."""
    size: int
    root: bytes
    number: int


@dataclass
class _Page:
    """The next leaves, and the trees that they belong to."""

    leaves: Sequence[Leaf]
    trees: dict[str, GrowingTiles]
    signed: Mapping[str, Sequence[SignedTree]]
    roots: dict[str, bytes] = field(default_factory=dict)

    def grow(self) -> None:
        """Append every leaf.

        Raises:
            LogContradicted: when a tree is not what a head says of it.
        """
        of: defaultdict[str, list[Leaf]] = defaultdict(list)
        for leaf in self.leaves:
            of[leaf.organization].append(leaf)
        last = max((signed.position for each in self.signed.values() for signed in each), default=0)
        for organization, tree in self.trees.items():
            self._grow(tree, of[organization], self.signed.get(organization, ()), last)
            self.roots[organization] = tree.root()

    def _grow(self, tree: GrowingTiles, own: Sequence[Leaf], signed: Sequence[SignedTree], last: int) -> None:
        begun, positions = tree.size, [leaf.position for leaf in own]
        expected: dict[int, SignedTree] = {}
        for each in signed:
            size = begun + bisect_right(positions, each.position)
            if size != each.size:
                raise _contradicted(each, f"the log gives {size} events instead of {each.size}")
            expected[size] = each
        for leaf in own:
            tree.append(leaf.position, leaf.hash)
            found = expected.get(tree.size)
            if found is not None and tree.root() != found.root:
                raise _contradicted(found, "the log gives another root, so an event was altered")
        unknown = [position for position in positions if position <= last]
        if unknown and (not signed or unknown[-1] > signed[-1].position):
            raise LogContradicted(
                f"{own[0].organization} has an event at position {unknown[-1]} that the heads signed up to"
                f" position {last} do not know; restore the log, its trees are not signed any more"
            )


def _contradicted(signed: SignedTree, how: str) -> LogContradicted:
    return LogContradicted(
        f"head {signed.number}, signed at position {signed.position}, contradicts the log of"
        f" {signed.organization}: {how}; restore the log, its trees are not signed any more"
    )


async def advance(connection: AsyncConnection) -> int | None:
    """Add one page of events to the trees; returns the position reached, or None when there are no more.

    The connection is in autocommit.

    Raises:
        LogContradicted: when the log is not what was signed; nothing is changed then.
        TileMissing: when the stored trees are damaged; `forget` has them made again.
    """
    async with connection.transaction():
        await connection.execute(_BEGIN)
        position = await lock(connection)
        leaves = await _leaves(connection, position)
        if not leaves:
            return None
        reached = leaves[-1].position
        signed: defaultdict[str, list[SignedTree]] = defaultdict(list)
        for row in await (await connection.execute(_SIGNED, (position, reached))).fetchall():
            signed[row[0]].append(SignedTree(row[0], row[1], row[2], bytes(row[3]), row[4]))
        touched = {leaf.organization for leaf in leaves} | set(signed)
        page = _Page(leaves, await _trees(connection, touched), signed)
        await asyncio.to_thread(page.grow)
        await _save(connection, page)
        await connection.execute(_SAVE_CHECKPOINT, (reached,))
        return reached


async def lock(connection: AsyncConnection) -> int:
    """How far the trees are; until the transaction ends, nobody else changes trees or heads."""
    row = await (await connection.execute(_CHECKPOINT)).fetchone()
    return int(row[0]) if row is not None else 0


async def forget(connection: AsyncConnection) -> None:
    """Have the trees made again from the log. What was signed stays, and is compared."""
    async with connection.transaction():
        await lock(connection)
        for statement in FORGET:
            await connection.execute(statement)


async def _leaves(connection: AsyncConnection, after: int) -> list[Leaf]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(LEAVES, (after, PAGE_EVENTS))
    return [Leaf(int(row[0]), str(row[1]), bytes(row[2])) for row in await cursor.fetchall()]


async def _trees(connection: AsyncConnection, organizations: Collection[str]) -> dict[str, GrowingTiles]:
    rows = await (await connection.execute(_SIZES, (list(organizations),))).fetchall()
    sizes: dict[str, int] = {str(organization): int(size) for organization, size in rows}
    wanted = [(name, tile) for name, size in sizes.items() for tile in merkle.open_tiles(size)]
    kept = await read_tiles(connection, wanted)
    return {
        name: GrowingTiles.of(
            sizes.get(name, 0), {tile: found for (owner, tile), found in kept.items() if owner == name}
        )
        for name in organizations
    }


async def read_tiles(connection: AsyncConnection, wanted: Sequence[TileKey]) -> dict[TileKey, KeptTile]:
    """Those of the tiles that are stored."""
    if not wanted:
        return {}
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        TILES,
        (
            [organization for organization, _ in wanted],
            [tile.level for _, tile in wanted],
            [tile.number for _, tile in wanted],
        ),
    )
    found: dict[TileKey, KeptTile] = {}
    for organization, level, number, hashes, positions in await cursor.fetchall():
        tile = Tile(int(level), int(number))
        found[str(organization), tile] = KeptTile(tile, bytes(hashes), unpacked(positions))
    return found


def packed(positions: Sequence[int]) -> bytes | None:
    """Positions as a tile stores them: 8 bytes big-endian each."""
    return b"".join(position.to_bytes(8, "big") for position in positions) if positions else None


def unpacked(positions: bytes | None) -> tuple[int, ...]:
    """The opposite of `packed`."""
    raw = positions or b""
    return tuple(int.from_bytes(raw[start : start + 8], "big") for start in range(0, len(raw), 8))


async def _save(connection: AsyncConnection, page: _Page) -> None:
    tiles = [(name, tile) for name, tree in page.trees.items() for tile in tree.tiles()]
    await connection.execute(
        _SAVE_TILES,
        (
            [name for name, _ in tiles],
            [kept.tile.level for _, kept in tiles],
            [kept.tile.number for _, kept in tiles],
            [kept.hashes for _, kept in tiles],
            [packed(kept.positions) for _, kept in tiles],
            [kept.positions[0] if kept.positions else None for _, kept in tiles],
            [kept.positions[-1] if kept.positions else None for _, kept in tiles],
        ),
    )
    await connection.execute(
        _SAVE_TREES,
        (
            list(page.trees),
            [tree.size for tree in page.trees.values()],
            [page.roots[name] for name in page.trees],
        ),
    )
