"""Trees that are kept in tiles are the trees that RFC 6962 defines, however they grow."""

from hypothesis import given
from hypothesis import strategies as st

from command_api.transparency.growth import GrowingTiles, KeptTile, TileMissing
from schemas import merkle
from schemas.merkle import Subtree, Tile

LEAVES = [merkle.hash_entry(number.to_bytes(4, "big")) for number in range(70_000)]


def grown(*steps: int) -> tuple[GrowingTiles, dict[Tile, KeptTile]]:
    """A tree that grew in so many steps, stored and read again after each."""
    kept: dict[Tile, KeptTile] = {}
    tree = GrowingTiles()
    for step in steps:
        tree = GrowingTiles.of(tree.size, {tile: kept[tile] for tile in merkle.open_tiles(tree.size)})
        for number in range(tree.size, tree.size + step):
            tree.append(number * 3, LEAVES[number])
        kept |= {tile.tile: tile for tile in tree.tiles()}
    return tree, kept


@given(st.lists(st.integers(0, 400), max_size=6))
def test_pages_of_any_size_make_the_same_tree(steps: list[int]) -> None:
    tree, kept = grown(*steps)
    assert tree.size == sum(steps)
    assert tree.root() == merkle.root_of(LEAVES[: tree.size])

    def from_tiles(subtree: Subtree) -> bytes:
        return merkle.hash_in_tile(subtree, kept[merkle.tile_of(subtree)].hashes)

    for size in {tree.size, tree.size // 2, min(tree.size, 256)}:
        assert merkle.root_at(size, from_tiles) == merkle.root_of(LEAVES[:size])
    positions = [position for tile in sorted(kept) if tile.level == 0 for position in kept[tile].positions]
    assert positions == [number * 3 for number in range(tree.size)]


def test_a_tree_of_three_levels_of_tiles() -> None:
    tree, kept = grown(65_535, 1, 300)
    assert {tile.level for tile in kept} == {0, 1, 2}
    assert tree.root() == merkle.root_of(LEAVES[:65_836])


def test_what_is_missing_or_short_is_noticed() -> None:
    tree, kept = grown(300)
    short = KeptTile(Tile(0, 1), kept[Tile(0, 1)].hashes[:-32], kept[Tile(0, 1)].positions[:-1])
    for broken in ({}, {Tile(0, 1): kept[Tile(0, 1)]}, kept | {Tile(0, 1): short}):
        try:
            GrowingTiles.of(tree.size, broken)
        except TileMissing:
            continue
        raise AssertionError(broken)
