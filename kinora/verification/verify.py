"""What `kinora events verify` decides: whether an export is exactly what a signed head vouches for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from pydantic import ValidationError

from kinora.verification.lines import FileUnfit, LeafFile, Line, Mark, Report, lines, recompute
from kinora.verification.naming import Finding, Stretch, first_fault
from schemas.base import Message
from schemas.envelope import source_of
from schemas.heads import AuditKeys, HeadOfOrganization, TreeState, key_id_of

EVENTS_FILE = "events.ndjson"
LEAVES_FILE = "leaves.txt"
HEAD_FILE = "head.json"
KEYS_FILE = "keys.json"
EARLIER_FOLDER = "heads"

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The files that are verified."""

    events: tuple[Path, ...]
    head: Path
    keys: Path
    leaves: Path | None = None
    earlier: tuple[Path, ...] = ()
    """Heads that were kept from before: the log must begin with what they vouch for."""
    after: int = 0
    until: int | None = None
    """The part that the export holds, where it is not all."""

    @classmethod
    def folder(cls, folder: Path) -> Self:
        """What `kinora audit fetch` wrote."""
        return cls(
            (folder / EVENTS_FILE,),
            folder / HEAD_FILE,
            folder / KEYS_FILE,
            leaves if (leaves := folder / LEAVES_FILE).exists() else None,
            tuple(sorted((folder / EARLIER_FOLDER).glob("*.json"))),
        )


class Verdict(Message):
    """What came of it."""

    verified: bool
    reason: str | None
    """Why it is not verified."""
    finding: Finding | None
    """The first wrong event, where a leaf file allows to name it."""
    organization: str
    log_id: str
    head: int
    """Number of the head."""
    position: int
    """Up to which the head vouches."""
    signed_at: str
    key_id: str
    events: int
    """How many were verified."""
    first: int | None
    """The number of the first of them, counted from 1 among all of the organization."""
    of: int
    """How many the head vouches for."""
    left_out: int
    """Lines behind ``--until``, which nothing is said of."""
    earlier_heads: tuple[int, ...]
    """Numbers of the kept heads that the log was compared with."""


def verify(evidence: Evidence, report: Report) -> Verdict:
    """Verify an export.

    Raises:
        FileUnfit: when a file is not what it should be, before anything can be said of the events.
    """
    signed, keys = _read(evidence.head, HeadOfOrganization), read_keys(evidence.keys)
    earlier = [_read(file, HeadOfOrganization) for file in evidence.earlier]
    if signed.tree is None:
        raise FileUnfit(f"{evidence.head} names no tree of an organization; fetch it as one of its members")
    for file, each in zip((evidence.head, *evidence.earlier), (signed, *earlier), strict=True):
        if (wrong := _doubt(each, keys)) is not None:
            return _verdict(signed, signed.tree, f"{file.name}: {wrong}")
    foreign = [each for each in earlier if each.tree and each.tree.organization != signed.tree.organization]
    if foreign:
        raise FileUnfit(f"an earlier head is of another organization, {foreign[0].tree}")
    position, until = signed.head.position, evidence.until
    if until is not None and until > position:
        raise FileUnfit(
            f"--until {until} is behind position {position}, up to which head {signed.head.number} vouches;"
            f" fetch a newer head, or give --until {position}"
        )
    if evidence.after and evidence.after >= (position if until is None else until):
        raise FileUnfit(
            f"--after {evidence.after} leaves nothing to verify up to position"
            f" {position if until is None else until}; give an earlier position"
        )
    compare = _Comparison(evidence, signed, signed.tree, earlier, report)
    return compare.whole() if evidence.after == 0 and until in (None, position) else compare.part()


@dataclass
class _Comparison:
    evidence: Evidence
    signed: HeadOfOrganization
    tree: TreeState
    earlier: Sequence[HeadOfOrganization]
    report: Report

    @property
    def source(self) -> str:
        return source_of(self.signed.head.log_id)

    @property
    def sizes(self) -> frozenset[int]:
        """Of what heads vouch for, and one more: which event came next tells whether one was slipped in."""
        known = {self.tree.size, *(_size(each) for each in self.earlier)}
        return frozenset(known | {size + 1 for size in known})

    def whole(self) -> Verdict:
        """Of all events up to the head: their root must be the signed one."""
        found = recompute(
            self.evidence.events, self.source, self.signed.head.position, self.sizes, self.report
        )
        if (
            not found.broken
            and found.tree.size == self.tree.size
            and found.tree.root().hex() == self.tree.root
        ):
            return self._judged(found.marks, found.beyond, range(found.tree.size))
        if self.evidence.leaves is None:
            return self._refused(self._without_leaves(found.tree.size))
        leaves = LeafFile.read(self.evidence.leaves, self.report).between(0, self.signed.head.position)
        if (wrong := self._untrusted(leaves, leaves.marks(self.sizes))) is not None:
            return self._refused(wrong)
        finding, _ = self._compared(Stretch(leaves, 0, self.signed.head.position))
        return self._refused("the files changed while they were read; verify again", finding)

    def _without_leaves(self, size: int) -> str:
        wrong = f"the events do not give the signed root {self.tree.root}; --leaves names the first wrong one"
        if size >= self.tree.size:
            return wrong
        # Most often nobody tampered: the export is older than the head.
        return (
            f"the files hold {size} events, and head {self.signed.head.number} vouches for {self.tree.size},"
            f" up to position {self.signed.head.position}. Export what is missing; if nothing is,"
            f" {wrong}"
        )

    def part(self) -> Verdict:
        """Of some events: they must be the leaves of a file whose root is the signed one."""
        if self.evidence.leaves is None:
            raise FileUnfit(
                "a part of the log is verified by its leaf hashes: give all of them with --leaves"
            )
        after = self.evidence.after
        until = self.signed.head.position if self.evidence.until is None else self.evidence.until
        every = LeafFile.read(self.evidence.leaves, self.report).between(0, self.signed.head.position)
        marks = every.marks(self.sizes)
        if (wrong := self._untrusted(every, marks)) is not None:
            return self._refused(wrong)
        leaves = every.between(after, until)
        if not leaves.positions:
            raise FileUnfit(
                f"the leaf file names no event behind position {after} up to {until}: nothing to verify"
            )
        finding, beyond = self._compared(Stretch(leaves, after, until))
        if finding is not None:
            return self._refused("", finding)
        first = every.positions.index(leaves.positions[0])
        return self._judged(marks, beyond, range(first, first + len(leaves.positions)))

    def _untrusted(self, leaves: LeafFile, marks: dict[int, Mark]) -> str | None:
        """Why a leaf file says nothing."""
        size = len(leaves.positions)
        if size != self.tree.size:
            return (
                f"the leaf file has {size} events up to the head, not {self.tree.size}; delete it and fetch"
                " it anew"
            )
        if size and marks[size].root.hex() != self.tree.root:
            return "the leaf file does not give the signed root; delete it and fetch it anew"
        return None

    def _compared(self, stretch: Stretch) -> tuple[Finding | None, int]:
        def read() -> Iterator[Line]:
            return lines(self.evidence.events, self.source)

        return first_fault(read(), stretch, self.evidence.events[-1], read)

    def _judged(self, marks: dict[int, Mark], beyond: int, shown: range) -> Verdict:
        """Of events that are as the head says."""
        for each in self.earlier:
            if (wrong := self._contradiction(each, marks)) is not None:
                return self._refused(f"head {each.head.number}, kept from before, vouches for {wrong}")
        if beyond and self.evidence.until is None:
            position = self.signed.head.position
            return self._refused(
                f"{beyond} of the lines stand behind position {position}, up to which head"
                f" {self.signed.head.number} vouches: fetch a newer head, or leave them out with"
                f" --until {position}"
            )
        return _verdict(self.signed, self.tree, None, earlier=self.earlier, shown=shown, left_out=beyond)

    def _contradiction(self, kept: HeadOfOrganization, marks: dict[int, Mark]) -> str | None:
        size = _size(kept)
        if size > self.tree.size:
            return (
                f"{size} events, and head {self.signed.head.number} for {self.tree.size}: the log lost its"
                " end, or that head is an older one"
            )
        if kept.tree is not None and size and marks[size].root.hex() != kept.tree.root:
            return "another beginning of the log"
        following = marks.get(size + 1)
        if following is not None and following.position <= kept.head.position:
            return (
                f"{size} events up to position {kept.head.position}, and now there is one more, at"
                f" {following.position}: it was inserted afterwards"
            )
        return None

    def _refused(self, reason: str, finding: Finding | None = None) -> Verdict:
        if finding is not None:
            reason = f"{finding.what} was {finding.how}: {finding.detail}"
        return _verdict(self.signed, self.tree, reason, finding=finding, earlier=self.earlier)


def _size(signed: HeadOfOrganization) -> int:
    return 0 if signed.tree is None else signed.tree.size


def _verdict(
    signed: HeadOfOrganization,
    tree: TreeState,
    reason: str | None,
    *,
    finding: Finding | None = None,
    earlier: Sequence[HeadOfOrganization] = (),
    shown: range = range(0),
    left_out: int = 0,
) -> Verdict:
    return Verdict(
        verified=reason is None,
        reason=reason,
        finding=finding,
        organization=tree.organization,
        log_id=signed.head.log_id,
        head=signed.head.number,
        position=signed.head.position,
        signed_at=signed.head.time,
        key_id=signed.key_id,
        events=len(shown),
        first=shown.start + 1 if shown else None,
        of=tree.size,
        left_out=left_out,
        earlier_heads=tuple(each.head.number for each in earlier),
    )


def _doubt(signed: HeadOfOrganization, keys: dict[str, bytes]) -> str | None:
    """Why a head vouches for nothing; None when it does."""
    key = keys.get(signed.key_id)
    if key is None:
        return f"it is signed by the key {signed.key_id}, which is none of those given"
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(
            bytes.fromhex(signed.signature), signed.head.signed_bytes()
        )
    except InvalidSignature:
        return "its signature is not right: the head was altered"
    return None if signed.shows_tree() else "its tree is not shown to be below the signed root"


def read_keys(file: Path) -> dict[str, bytes]:
    """Public keys by their id, from the answer of /audit/keys or a PEM file.

    Raises:
        FileUnfit: when it is neither.
    """
    content = file.read_bytes()
    if content.startswith(b"-----BEGIN"):
        try:
            key = load_pem_public_key(content)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise FileUnfit(f"{file} holds no Ed25519 public key")
        raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return {key_id_of(raw): raw}
    keys = {}
    for each in _read(file, AuditKeys).data:
        raw = bytes.fromhex(each.public_key)
        if key_id_of(raw) != each.key_id:
            raise FileUnfit(f"{file} names a key {each.key_id} that is another one")
        keys[each.key_id] = raw
    return keys


def _read(file: Path, kind: type[M]) -> M:
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        part = error.errors(include_url=False)[0]
        where = ".".join(map(str, part["loc"]))
        raise FileUnfit(f"{file} is no {kind.__name__}: {where}: {part['msg']}; fetch it again") from None
