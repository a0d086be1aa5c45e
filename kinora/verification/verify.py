"""What `kinora events verify` decides: whether an export is exactly what a signed head vouches for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from pydantic import ValidationError

from kinora.verification.lines import FileUnfit, LeafFile, Line, Recomputed, Report, lines, recompute
from kinora.verification.naming import Finding, first_fault
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
            folder / LEAVES_FILE,
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
    """How many were compared."""
    beyond_head: int
    """Events behind the head's position: a later head will vouch for them."""
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
    compare = _Comparison(evidence, signed, signed.tree, earlier, report)
    whole = evidence.after == 0 and (evidence.until is None or evidence.until >= signed.head.position)
    return compare.whole() if whole else compare.part()


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
        """Of which the roots are known from heads."""
        return frozenset([self.tree.size, *(each.tree.size for each in self.earlier if each.tree)])

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
            return self._judged(found.roots, found)
        if self.evidence.leaves is None:
            why = (
                f"the events do not give the signed root {self.tree.root}; --leaves names the first wrong one"
            )
            return self._verdict(why, found)
        leaves = LeafFile.read(self.evidence.leaves, self.report).between(0, self.signed.head.position)
        if (wrong := self._untrusted(leaves, leaves.roots(self.sizes))) is not None:
            return self._verdict(wrong, found)
        return self._named(leaves, found)

    def part(self) -> Verdict:
        """Of some events: they must be the leaves of a file whose root is the signed one."""
        if self.evidence.leaves is None:
            raise FileUnfit(
                "a part of the log is verified by its leaf hashes: give all of them with --leaves"
            )
        every = LeafFile.read(self.evidence.leaves, self.report).between(0, self.signed.head.position)
        roots = every.roots(self.sizes)
        if (wrong := self._untrusted(every, roots)) is not None:
            return self._verdict(wrong, None)
        until = self.signed.head.position if self.evidence.until is None else self.evidence.until
        leaves = every.between(self.evidence.after, until)
        verdict = self._named(leaves, None)
        return verdict if verdict.finding is not None else self._judged(roots, None, len(leaves.positions))

    def _untrusted(self, leaves: LeafFile, roots: dict[int, bytes]) -> str | None:
        """Why a leaf file says nothing."""
        size = len(leaves.positions)
        if size != self.tree.size:
            return f"the leaf file has {size} events up to the head, not {self.tree.size}; fetch it anew"
        if size and roots[size].hex() != self.tree.root:
            return "the leaf file does not give the signed root; fetch it anew"
        return None

    def _named(self, leaves: LeafFile, found: Recomputed | None) -> Verdict:
        until = self.evidence.until
        limit = self.signed.head.position if until is None else min(until, self.signed.head.position)

        def read() -> Iterator[Line]:
            return lines(self.evidence.events, self.source)

        finding = first_fault(read(), leaves, limit, read)
        reason = None
        if finding is not None:
            reason = f"position {finding.position} was {finding.how}: {finding.detail}"
        return self._verdict(reason, found, finding=finding)

    def _judged(
        self, roots: dict[int, bytes], found: Recomputed | None, events: int | None = None
    ) -> Verdict:
        for each in self.earlier:
            if each.tree is None or each.tree.size == 0:
                continue
            root = roots.get(each.tree.size)
            if root is None or root.hex() != each.tree.root:
                how = "more events than there are now" if root is None else "another beginning of the log"
                return self._verdict(f"head {each.head.number}, kept from before, vouches for {how}", found)
        return self._verdict(None, found, events=events)

    def _verdict(
        self,
        reason: str | None,
        found: Recomputed | None,
        *,
        finding: Finding | None = None,
        events: int | None = None,
    ) -> Verdict:
        counted = found.tree.size if found is not None else 0
        return _verdict(
            self.signed,
            self.tree,
            reason,
            finding=finding,
            events=counted if events is None else events,
            beyond=found.beyond if found is not None else 0,
            earlier=self.earlier,
        )


def _verdict(
    signed: HeadOfOrganization,
    tree: TreeState,
    reason: str | None,
    *,
    finding: Finding | None = None,
    events: int = 0,
    beyond: int = 0,
    earlier: Sequence[HeadOfOrganization] = (),
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
        events=events,
        beyond_head=beyond,
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
        except ValueError:
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
