"""Proofs for one organization, from its stored tiles: O(log n) of them each."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import LiteralString

from psycopg import AsyncConnection
from pydantic import Field

from command_api.domain.errors import Invalid, NotFound
from command_api.transparency.errors import NotInHead
from command_api.transparency.heads import find_head, head_of, size_at, trees_at
from command_api.transparency.trees import TileKey, read_tiles, unpacked
from schemas import merkle
from schemas.base import Message
from schemas.heads import HeadOfOrganization, TreeState
from schemas.ids import EventId, Sha256
from schemas.merkle import Span

_LEAF_TILE: LiteralString = """
SELECT number, positions FROM kinora_merkle_tiles
 WHERE organization = %s AND level = 0 AND first_position <= %s ORDER BY first_position DESC LIMIT 1
"""
_LEAF_TILES: LiteralString = """
SELECT hashes, positions FROM kinora_merkle_tiles
 WHERE organization = %s AND level = 0 AND number >= %s AND first_position <= %s ORDER BY number LIMIT 64
"""

_MADE_AGAIN = "the trees are being made again from the log; ask again in a while"


class InclusionProof(Message):
    """Shows that an event is in the organization's tree below a head."""

    event_id: EventId | None = None
    """Where the event was asked for by it."""
    position: int
    leaf: Sha256
    """SHA-256 of 0x00, the position as 8 bytes big-endian, and the stored bytes."""
    index: int = Field(ge=0)
    """Of the leaf in the tree."""
    path: tuple[Sha256, ...]
    head: HeadOfOrganization


class ConsistencyProof(Message):
    """Shows that the organization's tree below a head begins with the one below an earlier head."""

    from_head: int
    to_head: int
    older: TreeState | None
    """None where the organization had no events yet: then there is nothing to show."""
    newer: TreeState | None
    path: tuple[Sha256, ...]


async def need_trees(connection: AsyncConnection, position: int) -> None:
    """Nothing can be shown of events that the trees do not hold now, though heads vouch for them.

    Raises:
        NotInHead: while the trees are being made again, and are not that far yet.
    """
    row = await (await connection.execute("SELECT position FROM kinora_merkle_checkpoint")).fetchone()
    if row is None or row[0] < position:
        raise NotInHead(_MADE_AGAIN)


async def prove_inclusion(
    connection: AsyncConnection, organization: str, position: int, head: int | None
) -> InclusionProof:
    """The proof for the organization's event at a position, in a head or the latest.

    Raises:
        NoHead: when there is no such head.
        NotInHead: when the event is newer than it.
        NotFound: when the organization has no event at that position.
    """
    shown = await head_of(connection, organization, head)
    await need_trees(connection, min(position, shown.head.position))
    if position > shown.head.position:
        raise NotInHead(
            f"position {position} is behind head {shown.head.number}, which was signed at"
            f" {shown.head.position}; a head that holds it follows within seconds"
        )
    row = await (await connection.execute(_LEAF_TILE, (organization, position))).fetchone()
    positions = unpacked(row[1]) if row is not None else ()
    place = bisect_left(positions, position)
    if row is None or shown.tree is None or place == len(positions) or positions[place] != position:
        raise NotFound(f"there is no event at position {position}")
    index = int(row[0]) * merkle.TILE_WIDTH + place
    leaf, *path = await _hashes(
        connection,
        organization,
        [Span(index, index + 1), *merkle.inclusion_spans(index, shown.tree.size)],
    )
    return InclusionProof(
        position=position,
        leaf=leaf.hex(),
        index=index,
        path=tuple(step.hex() for step in path),
        head=shown,
    )


async def prove_consistency(
    connection: AsyncConnection, organization: str, older: int, newer: int | None
) -> ConsistencyProof:
    """The proof that nothing of the organization changed between two heads.

    Raises:
        NoHead: when there is no such head.
        Invalid: when the one that should be newer is older.
        NotInHead: while the trees are being made again.
    """
    first, last = await find_head(connection, older), await find_head(connection, newer)
    numbers = first.head.number, last.head.number
    await need_trees(connection, max(first.head.position, last.head.position))
    if numbers[0] > numbers[1]:
        message = f"head {numbers[0]} is newer than head {numbers[1]}; name the older one as `from`"
        raise Invalid.field("/query/from", "invalid", message)
    sizes = [await size_at(connection, number, organization) for number in numbers]
    spans = merkle.consistency_spans(*sizes) if sizes[0] else []
    path = await _hashes(connection, organization, spans)
    states = [
        next((tree for tree in await trees_at(connection, number) if tree.organization == organization), None)
        for number in numbers
    ]
    return ConsistencyProof(
        from_head=numbers[0],
        to_head=numbers[1],
        older=states[0],
        newer=states[1],
        path=tuple(step.hex() for step in path),
    )


async def leaf_page(
    connection: AsyncConnection, organization: str, after: int, until: int
) -> list[tuple[int, bytes]]:
    """The next leaves behind `after`, up to `until`: position and hash; none at the end."""
    row = await (await connection.execute(_LEAF_TILE, (organization, after))).fetchone()
    cursor = connection.cursor(binary=True)
    await cursor.execute(_LEAF_TILES, (organization, int(row[0]) if row is not None else 0, until))
    page: list[tuple[int, bytes]] = []
    for hashes, packed in await cursor.fetchall():
        positions = unpacked(packed)
        first, last = bisect_right(positions, after), bisect_right(positions, until)
        page += zip(positions[first:last], merkle.split(bytes(hashes))[first:last], strict=True)
    return page


async def _hashes(connection: AsyncConnection, organization: str, spans: Sequence[Span]) -> list[bytes]:
    """The hashes of nodes, by one query for all tiles that they need."""
    wanted: set[TileKey] = {
        (organization, merkle.tile_of(subtree)) for span in spans for subtree in merkle.subtrees(span)
    }
    tiles = await read_tiles(connection, sorted(wanted))

    def from_tiles(subtree: merkle.Subtree) -> bytes:
        tile = tiles.get((organization, merkle.tile_of(subtree)))
        if tile is None:
            raise NotInHead(_MADE_AGAIN)
        try:
            return merkle.hash_in_tile(subtree, tile.hashes)
        except ValueError as error:
            raise NotInHead(_MADE_AGAIN) from error

    return [merkle.span_hash(span, from_tiles) for span in spans]
