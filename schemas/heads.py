"""Signed heads: what the service commits itself to, once for all organizations.

A head names a position of the log and the root of a Merkle tree whose leaves are the organizations' trees at
that position, so that an organization shows that its own is among them without seeing another's. What is
signed is the RFC 8785 form of the head; every value in it is an integer or ASCII text, for which that form is
JSON with sorted keys and no spaces.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Literal

from pydantic import Field

from schemas import merkle
from schemas.base import Message
from schemas.ids import Sha256

NOBODY = "_"
"""Stands for the organization of events that belong to none."""


class TreeState(Message):
    """One organization's tree at one moment."""

    organization: str = Field(pattern=r"^(_|org_[0-9a-f]{32})$")
    """``org_…``, or `NOBODY`."""
    size: int = Field(ge=0)
    """How many events."""
    root: Sha256

    def entry(self) -> bytes:
        """Its entry in the tree over all trees."""
        return canonical(self.model_dump())

    def leaf(self) -> bytes:
        """The leaf hash of `entry`."""
        return merkle.hash_entry(self.entry())


class TreeOfTrees(Message):
    """The tree over the trees of all organizations, in the order of their ids."""

    size: int = Field(ge=0)
    root: Sha256


class Head(Message):
    """What is signed: all events up to a position."""

    type: Literal["kinora.head.v1"] = "kinora.head.v1"
    number: int = Field(ge=1)
    """Heads of an installation are numbered; numbers may be missing."""
    log_id: str = Field(pattern=r"^log_[0-9a-z]+$")
    position: int = Field(ge=0)
    """The last event that the trees hold."""
    time: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")
    """UTC, when it was signed."""
    trees: TreeOfTrees

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return canonical(self.model_dump())


class SignedHead(Message):
    """A head as it is published: on NATS, in the object store and over REST."""

    head: Head
    key_id: Sha256
    """SHA-256 of the 32 bytes of the public key."""
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")
    """Ed25519, hexadecimal."""

    def published_bytes(self) -> bytes:
        """The whole as it is published."""
        return canonical(self.model_dump())


class Membership(Message):
    """Proves that a tree is one of those below a head."""

    index: int = Field(ge=0)
    size: int = Field(ge=1)
    path: tuple[Sha256, ...]

    def shows(self, tree: TreeState, head: Head) -> bool:
        """Whether it proves that `tree` is below `head`."""
        return self.size == head.trees.size and merkle.includes(
            tree.leaf(),
            self.index,
            self.size,
            map(bytes.fromhex, self.path),
            bytes.fromhex(head.trees.root),
        )


class HeadOfOrganization(SignedHead):
    """A signed head with one organization's tree and the proof that it is below the head."""

    tree: TreeState | None
    """None where the organization had no events yet."""
    membership: Membership | None

    def shows_tree(self) -> bool:
        """Whether the proof holds; nothing has to be proven of a tree that is not there."""
        if self.tree is None or self.membership is None:
            return self.tree is None and self.membership is None
        return self.membership.shows(self.tree, self.head)


class AuditKey(Message):
    """A public key that signs heads or has signed some."""

    key_id: Sha256
    public_key: Sha256
    """The 32 bytes of the Ed25519 key, hexadecimal."""
    since: datetime
    """When it signed for the first time."""


class AuditKeys(Message):
    """Every key, the one in use last; also the file that `kinora events verify --key` takes."""

    data: tuple[AuditKey, ...]


def canonical(value: object) -> bytes:
    """RFC 8785, for integers and ASCII text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def key_id_of(public_key: bytes) -> str:
    """The name of a public key."""
    return sha256(public_key).hexdigest()


def tree_of_trees(trees: Sequence[TreeState]) -> TreeOfTrees:
    """Over these, which are in the order of their organizations' ids."""
    return TreeOfTrees(size=len(trees), root=merkle.root_of([tree.leaf() for tree in trees]).hex())


def membership(trees: Sequence[TreeState], organization: str) -> Membership | None:
    """The proof that the organization's tree is one of these; None when it is not."""
    leaves = [tree.leaf() for tree in trees]
    for index, tree in enumerate(trees):
        if tree.organization == organization:
            path = [
                merkle.root_of(leaves[begin:end]) for begin, end in merkle.inclusion_spans(index, len(trees))
            ]
            return Membership(index=index, size=len(trees), path=tuple(step.hex() for step in path))
    return None
