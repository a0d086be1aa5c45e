"""Offline verification of one organization's export: events per second of one core, and what an error costs.

The events are those of a seeded history, in the bytes that the log would store; files and head are made here,
as the service makes them, and verified by what `kinora events verify` calls.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from benchmarks.installation import console, scratch
from benchmarks.report import Result
from benchmarks.seeding import Story
from kinora.verification.verify import (
    EVENTS_FILE,
    HEAD_FILE,
    KEYS_FILE,
    LEAVES_FILE,
    Evidence,
    Verdict,
    verify,
)
from schemas import merkle
from schemas.envelope import public_bytes, stored_bytes
from schemas.heads import (
    AuditKey,
    AuditKeys,
    Head,
    HeadOfOrganization,
    TreeState,
    key_id_of,
    membership,
    tree_of_trees,
)

EVENTS = 1_000_000
QUICK_EVENTS = 50_000
ROUNDS = 3
LOG = "log_benchmark"


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark; about two minutes."""
    events = QUICK_EVENTS if quick else EVENTS
    with scratch() as folder:
        console.print(f"verify: writing an export of {events:,} events …")
        size = _write(folder, events)
        evidence = Evidence.folder(folder)
        console.print("verify: verifying …")
        seconds, verdict = min((_timed(evidence) for _ in range(ROUNDS)), key=lambda round_: round_[0])
        if not verdict.verified or verdict.events != events:
            raise RuntimeError(f"an untouched export is not verified: {verdict.reason}")
        part_seconds, part = _timed(_without_first(evidence, folder))
        if not part.verified or part.events != events - 1:
            raise RuntimeError(f"an untouched part is not verified: {part.reason}")
        _alter_last(folder / EVENTS_FILE)
        naming_seconds, named = _timed(evidence)
        if named.finding is None or named.finding.how not in ("altered", "dropped"):
            raise RuntimeError(f"an altered export is not named: {named.reason}")
    return [
        Result("verified per core", events / seconds, "events/s", 200_000, at_least=True),
        Result("bytes per core", size / seconds / 1e6, "MB/s"),
        Result("verified as a part, by leaf hashes", events / part_seconds, "events/s"),
        Result("finding the last event altered", naming_seconds, "s"),
    ]


def _timed(evidence: Evidence) -> tuple[float, Verdict]:
    """CPU seconds: it is one core that is asked for, whatever others do meanwhile."""
    began = time.process_time()
    verdict = verify(evidence, lambda _what, _done, _total: None)
    return time.process_time() - began, verdict


def _write(folder: Path, events: int) -> int:
    """All files of one organization; returns the export's size in bytes."""
    tree, last = merkle.GrowingTree(), 0
    with (folder / EVENTS_FILE).open("wb") as lines, (folder / LEAVES_FILE).open("w") as leaves:
        for row in Story(seed=1, organizations=1).rows(events):
            leaf = merkle.hash_event(row.notification_id, row.state)
            tree.append(leaf)
            lines.write(public_bytes(row.notification_id, LOG, row.state) + b"\n")
            leaves.write(f"{row.notification_id} {leaf.hex()}\n")
            last = row.notification_id
        size = lines.tell()
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    trees = [TreeState(organization="org_" + "0" * 32, size=tree.size, root=tree.root().hex())]
    (folder / HEAD_FILE).write_text(_head(key, public, trees, last).model_dump_json())
    keys = AuditKeys(
        data=(AuditKey(key_id=key_id_of(public), public_key=public.hex(), since=datetime.now(UTC)),)
    )
    (folder / KEYS_FILE).write_text(keys.model_dump_json())
    return size


def _head(
    key: Ed25519PrivateKey, public: bytes, trees: Sequence[TreeState], position: int
) -> HeadOfOrganization:
    head = Head(
        number=1, log_id=LOG, position=position, time="2026-01-01T00:00:00Z", trees=tree_of_trees(trees)
    )
    return HeadOfOrganization(
        head=head,
        key_id=key_id_of(public),
        signature=key.sign(head.signed_bytes()).hex(),
        tree=trees[0],
        membership=membership(trees, trees[0].organization),
    )


def _without_first(evidence: Evidence, folder: Path) -> Evidence:
    part = folder / "part.ndjson"
    with evidence.events[0].open("rb") as whole, part.open("wb") as rest:
        first = stored_bytes(whole.readline().rstrip())[0]
        shutil.copyfileobj(whole, rest)
    return replace(evidence, events=(part,), after=first)


def _alter_last(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(-3, 2)
        stream.write(b"~")
