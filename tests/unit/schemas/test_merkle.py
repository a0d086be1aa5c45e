"""Trees, roots and proofs against the definitions of RFC 6962, and against known answers."""

import hashlib
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from schemas import merkle
from schemas.merkle import Span, Subtree

# The entries and answers that Certificate Transparency's implementations share as their test vectors.
ENTRIES = [
    bytes.fromhex(entry)
    for entry in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
INCLUSIONS = {
    (0, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (5, 8): (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 3): ("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",),
    (1, 5): (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}
CONSISTENCIES = {
    (1, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (6, 8): (
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 5): (
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}

LEAVES = [merkle.hash_entry(number.to_bytes(2, "big")) for number in range(1300)]
sizes = st.integers(1, len(LEAVES))


def subtree_hashes(leaves: Sequence[bytes]) -> merkle.HashOf:
    return lambda subtree: merkle.root_of(
        leaves[subtree.number << subtree.level : (subtree.number + 1) << subtree.level]
    )


def inclusion(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    spans = merkle.inclusion_spans(index, len(leaves))
    return [merkle.span_hash(span, subtree_hashes(leaves)) for span in spans]


def consistency(old: int, leaves: Sequence[bytes]) -> list[bytes]:
    spans = merkle.consistency_spans(old, len(leaves))
    return [merkle.span_hash(span, subtree_hashes(leaves)) for span in spans]


def by_definition(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, word by word."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else hashlib.sha256().digest()
    half = max(1 << power for power in range(12) if 1 << power < len(leaves))
    return hashlib.sha256(b"\x01" + by_definition(leaves[:half]) + by_definition(leaves[half:])).digest()


def test_known_roots() -> None:
    leaves = [merkle.hash_entry(entry) for entry in ENTRIES]
    for size, root in enumerate(ROOTS, start=1):
        assert merkle.root_of(leaves[:size]).hex() == root
    assert merkle.root_of([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_known_proofs() -> None:
    leaves = [merkle.hash_entry(entry) for entry in ENTRIES]
    for (index, size), path in INCLUSIONS.items():
        assert [step.hex() for step in inclusion(index, leaves[:size])] == list(path)
    for (old, new), path in CONSISTENCIES.items():
        assert [step.hex() for step in consistency(old, leaves[:new])] == list(path)


def test_an_event_s_leaf_is_of_its_position_and_its_bytes() -> None:
    expected = hashlib.sha256(b"\x00" + b"\x00\x00\x00\x00\x00\x00\x01\x02" + b'{"a":1}').digest()
    assert merkle.hash_event(258, b'{"a":1}') == expected


@given(st.integers(0, 300))
def test_roots_are_those_of_the_definition(size: int) -> None:
    leaves = LEAVES[:size]
    growing = merkle.GrowingTree()
    for leaf in leaves:
        growing.append(leaf)
    expected = by_definition(leaves)
    assert (
        growing.root() == merkle.root_of(leaves) == merkle.root_at(size, subtree_hashes(leaves)) == expected
    )
    assert growing.size == size


@given(sizes, st.data())
def test_every_leaf_can_be_shown_and_nothing_else(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    leaves = LEAVES[:size]
    root, path = merkle.root_of(leaves), inclusion(index, leaves)
    assert merkle.includes(leaves[index], index, size, path, root)
    assert len(path) <= size.bit_length()

    other = data.draw(
        st.integers(0, size - 1).filter(lambda number: number != index) if size > 1 else st.just(1)
    )
    assert not merkle.includes(leaves[index], other, size, path, root)
    assert not merkle.includes(merkle.hash_entry(b"another"), index, size, path, root)
    assert not merkle.includes(leaves[index], index, size, [*path, root], root)
    assert not merkle.includes(leaves[index], index, size, path, merkle.hash_entry(b"root"))
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        assert not merkle.includes(leaves[index], index, size, path[:at] + path[at + 1 :], root)
        assert not merkle.includes(leaves[index], index, size, tampered(path, at), root)


@given(sizes, st.data())
def test_a_tree_begins_with_all_that_it_was_and_with_nothing_else(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size))
    leaves = LEAVES[:size]
    roots = merkle.root_of(leaves[:old]), merkle.root_of(leaves)
    path = consistency(old, leaves)
    assert merkle.begins_with(old, roots[0], size, roots[1], path)
    assert merkle.begins_with(0, merkle.EMPTY_ROOT, size, roots[1], [])

    rewritten = [merkle.hash_entry(b"rewritten"), *leaves[1:]]
    assert not merkle.begins_with(old, roots[0], size, merkle.root_of(rewritten), path)
    if old < size:
        assert not merkle.begins_with(
            old, roots[0], size, merkle.root_of(rewritten), consistency(old, rewritten)
        )
    assert not merkle.begins_with(old, merkle.hash_entry(b"root"), size, roots[1], path)
    assert not merkle.begins_with(old, roots[0], size, roots[1], [*path, roots[0]])
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        assert not merkle.begins_with(old, roots[0], size, roots[1], tampered(path, at))
        assert not merkle.begins_with(old, roots[0], size, roots[1], path[:at] + path[at + 1 :])


@given(sizes)
def test_tiles_hold_every_subtree(size: int) -> None:
    leaves = LEAVES[:size]
    tiles: dict[merkle.Tile, bytes] = {}
    row, level = leaves, 0
    while row:
        for number in range(0, len(row), merkle.TILE_WIDTH):
            kept = row[number : number + merkle.TILE_WIDTH]
            tiles[merkle.Tile(level, number // merkle.TILE_WIDTH)] = b"".join(kept)
        whole = len(row) // merkle.TILE_WIDTH
        row = [merkle.root_of(row[n * merkle.TILE_WIDTH : (n + 1) * merkle.TILE_WIDTH]) for n in range(whole)]
        level += 1

    def from_tiles(subtree: Subtree) -> bytes:
        return merkle.hash_in_tile(subtree, tiles[merkle.tile_of(subtree)])

    assert merkle.root_at(size, from_tiles) == merkle.root_of(leaves)
    assert {tile for tile in tiles if len(tiles[tile]) < merkle.TILE_WIDTH * 32} == set(
        merkle.open_tiles(size)
    )


def test_what_is_no_node_is_refused() -> None:
    assert merkle.subtrees(Span(8, 15)) == [Subtree(2, 2), Subtree(1, 6), Subtree(0, 14)]
    for wrong in ((3, 3), (-1, 3)):
        assert not merkle.includes(LEAVES[0], *wrong, [], LEAVES[0])
    assert not merkle.begins_with(2, LEAVES[0], 1, LEAVES[0], [])


def tampered(path: Sequence[bytes], at: int) -> list[bytes]:
    return [bytes([step[0] ^ 1]) + step[1:] if number == at else step for number, step in enumerate(path)]
