"""Signs heads, keeps them, and reads them again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import LiteralString, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from psycopg import AsyncConnection
from pydantic import SecretStr

from command_api.transparency.errors import LogContradicted, NoHead
from command_api.transparency.growth import KeptTile, TileMissing
from command_api.transparency.trees import TileKey, lock, read_tiles
from schemas import merkle
from schemas.heads import (
    AuditKey,
    AuditKeys,
    Head,
    HeadOfOrganization,
    SignedHead,
    TreeState,
    key_id_of,
    membership,
    tree_of_trees,
)

_LAST: LiteralString = "SELECT number, position, document FROM kinora_heads ORDER BY number DESC LIMIT 1"
_TREES: LiteralString = "SELECT organization, size, root FROM kinora_merkle_trees ORDER BY organization"
# Of every organization, what the last head up to this one says: organizations by a loose scan of the key.
_TREES_AT: LiteralString = """
WITH RECURSIVE organizations AS (
    (SELECT organization FROM kinora_head_trees ORDER BY organization LIMIT 1)
    UNION ALL
    SELECT (SELECT t.organization FROM kinora_head_trees t
             WHERE t.organization > o.organization ORDER BY t.organization LIMIT 1)
      FROM organizations o WHERE o.organization IS NOT NULL
)
SELECT o.organization, t.size, t.root
  FROM organizations o CROSS JOIN LATERAL (
       SELECT size, root FROM kinora_head_trees
        WHERE organization = o.organization AND number <= %s ORDER BY number DESC LIMIT 1) t
 ORDER BY o.organization
"""
_TREE_AT: LiteralString = """
SELECT size, root FROM kinora_head_trees
 WHERE organization = %s AND number <= %s ORDER BY number DESC LIMIT 1
"""
_KEEP: LiteralString = "INSERT INTO kinora_heads (number, position, document) VALUES (%s, %s, %s)"
_KEEP_TREES: LiteralString = """
INSERT INTO kinora_head_trees (number, organization, size, root)
SELECT %s, * FROM unnest(%s::text[], %s::bigint[], %s::bytea[])
"""
_REGISTER: LiteralString = """
INSERT INTO kinora_audit_keys (key_id, public_key) VALUES (%s, %s) ON CONFLICT (key_id) DO NOTHING
"""
_KEYS: LiteralString = "SELECT key_id, public_key, since FROM kinora_audit_keys ORDER BY since, key_id"
_LATEST: LiteralString = "SELECT document FROM kinora_heads ORDER BY number DESC LIMIT 1"
_NUMBERED: LiteralString = "SELECT document FROM kinora_heads WHERE number = %s"
_BEHIND: LiteralString = "SELECT document FROM kinora_heads WHERE number > %s ORDER BY number LIMIT %s"

_TREES_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Signer:
    """Holds the private key."""

    key: Ed25519PrivateKey
    public_key: bytes
    key_id: str

    @classmethod
    def of(cls, pem: SecretStr) -> Self:
        """From the settings.

        Raises:
            ValueError: when it is no Ed25519 private key.
        """
        key = load_pem_private_key(pem.get_secret_value().encode(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("audit_key_pem is no Ed25519 private key; make one with `openssl genpkey`")  # noqa: TRY004
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return cls(key, public, key_id_of(public))

    def sign(self, head: Head) -> SignedHead:
        signature = self.key.sign(head.signed_bytes())
        return SignedHead(head=head, key_id=self.key_id, signature=signature.hex())

    def signed(self, head: SignedHead) -> bool:
        """Whether the signature is this key's."""
        try:
            self.key.public_key().verify(bytes.fromhex(head.signature), head.head.signed_bytes())
        except InvalidSignature:
            return False
        return True

    async def register(self, connection: AsyncConnection) -> None:
        """Have the public key served, from now on for good."""
        await connection.execute(_REGISTER, (self.key_id, self.public_key))


async def refuse_shorter(connection: AsyncConnection) -> None:
    """For trees that hold all of the log: they may not end before the last head.

    Raises:
        LogContradicted: when they do.
    """
    async with connection.transaction():
        position = await lock(connection)
        last = await (await connection.execute(_LAST)).fetchone()
        if last is not None and last[1] > position:
            raise LogContradicted(
                f"the log ends at position {position}, and head {last[0]} was signed at {last[1]}: events"
                " were dropped; restore the log, its trees are not signed any more"
            )


async def sign_head(connection: AsyncConnection, signer: Signer, log_id: str) -> SignedHead | None:
    """Sign the trees as they are; None when nothing was added since the last head.

    Raises:
        LogContradicted: when a tree does not begin as it was signed, or the last head is not what was signed.
        TileMissing: when the stored trees are damaged.
    """
    async with connection.transaction():
        position = await lock(connection)
        last = await (await connection.execute(_LAST)).fetchone()
        number = last[0] if last is not None else 0
        if position <= (last[1] if last is not None else 0):
            return None
        rows = await (await connection.execute(_TREES)).fetchall()
        trees = [_tree(row) for row in rows]
        before = {tree.organization: tree for tree in await trees_at(connection, number)}
        if last is not None:
            _refuse_altered(SignedHead.model_validate_json(bytes(last[2])), list(before.values()), signer)
        now = {tree.organization: tree for tree in trees}
        grown = [tree for tree in trees if before.get(tree.organization) != tree]
        sizes = {tree.organization: tree.size for tree in trees}
        roots = await _roots_at(
            connection,
            [before[tree.organization] for tree in grown if tree.organization in before],
            sizes,
        )
        for tree in before.values():
            size = now[tree.organization].size if tree.organization in now else 0
            if size < tree.size:
                how = f"gives {size}"
            elif roots.get(tree.organization, tree.root) != tree.root:
                how = "begins with others"
            else:
                continue
            raise LogContradicted(
                f"head {number} names {tree.size} events of {tree.organization}, and the log {how};"
                " restore the log, its trees are not signed any more"
            )
        for organization, root in (await _roots_at(connection, grown, sizes)).items():
            if root != now[organization].root:
                raise TileMissing(f"the root of {organization}")
        signed = signer.sign(
            Head(
                number=number + 1,
                log_id=log_id,
                position=position,
                time=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                trees=tree_of_trees(trees),
            )
        )
        await connection.execute(_KEEP, (number + 1, position, signed.published_bytes()))
        await connection.execute(
            _KEEP_TREES,
            (
                number + 1,
                [tree.organization for tree in grown],
                [tree.size for tree in grown],
                [bytes.fromhex(tree.root) for tree in grown],
            ),
        )
        return signed


def _refuse_altered(last: SignedHead, trees: Sequence[TreeState], signer: Signer) -> None:
    """What is signed next has to follow what was: neither the last head nor its trees may be others now."""
    number = last.head.number
    if last.head.trees != tree_of_trees(trees):
        wrong = "is not over the trees that are stored beside it"
    elif last.key_id == signer.key_id and not signer.signed(last):
        wrong = "is not as it was signed"
    else:
        return
    raise LogContradicted(
        f"head {number} {wrong}: heads were altered; restore the database, nothing is signed any more"
    )


async def _roots_at(
    connection: AsyncConnection, wanted: Sequence[TreeState], sizes: Mapping[str, int]
) -> dict[str, str]:
    """The roots that today's tiles give for trees of former sizes; of those that are not shorter now."""
    found: dict[str, str] = {}
    kept = [tree for tree in wanted if 0 < tree.size <= sizes[tree.organization]]
    for page in (kept[start : start + _TREES_AT_ONCE] for start in range(0, len(kept), _TREES_AT_ONCE)):
        keys = {
            (tree.organization, merkle.tile_of(subtree))
            for tree in page
            for subtree in merkle.subtrees(merkle.Span(0, tree.size))
        }
        tiles = await read_tiles(connection, sorted(keys))
        for tree in page:
            found[tree.organization] = merkle.root_at(
                tree.size, partial(_from_tiles, tiles, tree.organization)
            ).hex()
    return found


def _from_tiles(tiles: Mapping[TileKey, KeptTile], organization: str, subtree: merkle.Subtree) -> bytes:
    tile = tiles.get((organization, merkle.tile_of(subtree)))
    if tile is None:
        raise TileMissing(f"{subtree} of {organization}")
    return merkle.hash_in_tile(subtree, tile.hashes)


# ---- reading ------------------------------------------------------------------------------------------


async def trees_at(connection: AsyncConnection, number: int) -> list[TreeState]:
    """The trees below a head, in the order of their organizations."""
    return [_tree(row) for row in await (await connection.execute(_TREES_AT, (number,))).fetchall()]


async def size_at(connection: AsyncConnection, number: int, organization: str) -> int:
    """How many leaves the organization's tree has below a head."""
    row = await (await connection.execute(_TREE_AT, (organization, number))).fetchone()
    return int(row[0]) if row is not None else 0


async def find_head(connection: AsyncConnection, number: int | None) -> SignedHead:
    """The head of that number, or the latest.

    Raises:
        NoHead: when there is none.
    """
    cursor = await (
        connection.execute(_LATEST) if number is None else connection.execute(_NUMBERED, (number,))
    )
    row = await cursor.fetchone()
    if row is None:
        which = "no head was signed yet" if number is None else f"there is no head {number}"
        raise NoHead(f"{which}; the orchestrator signs one within seconds of an event, if it has a key")
    return SignedHead.model_validate_json(bytes(row[0]))


async def heads_behind(connection: AsyncConnection, number: int, limit: int) -> Sequence[SignedHead]:
    """At most `limit` heads behind a number, in order."""
    rows = await (await connection.execute(_BEHIND, (number, limit))).fetchall()
    return [SignedHead.model_validate_json(bytes(row[0])) for row in rows]


async def head_of(connection: AsyncConnection, organization: str, number: int | None) -> HeadOfOrganization:
    """A head with the organization's own tree and its proof.

    Raises:
        NoHead: when there is none.
    """
    signed = await find_head(connection, number)
    trees = await trees_at(connection, signed.head.number)
    own = next((tree for tree in trees if tree.organization == organization), None)
    return HeadOfOrganization(
        **dict(signed), tree=own, membership=membership(trees, organization) if own is not None else None
    )


async def keys(connection: AsyncConnection) -> AuditKeys:
    """Every key that signed heads, the one in use last."""
    rows = await (await connection.execute(_KEYS)).fetchall()
    return AuditKeys(
        data=tuple(
            AuditKey(key_id=key_id, public_key=bytes(public_key).hex(), since=since)
            for key_id, public_key, since in rows
        )
    )


def _tree(row: Sequence[object]) -> TreeState:
    organization, size, root = row
    assert isinstance(root, bytes)  # noqa: S101 - for the type checker: the column is bytea
    return TreeState(organization=str(organization), size=int(str(size)), root=root.hex())
