"""Any single change of an export is found, and named for what it is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from kinora.verification.lines import FileUnfit
from kinora.verification.verify import Evidence, Verdict, verify
from schemas import merkle
from schemas.envelope import public_bytes
from schemas.heads import (
    Head,
    HeadOfOrganization,
    TreeState,
    canonical,
    key_id_of,
    membership,
    tree_of_trees,
)

LOG = "log_0192"
OURS, THEIRS = "org_" + "a" * 32, "org_" + "b" * 32
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

Event = tuple[int, bytes]


def event(position: int, word: str = "moved") -> Event:
    return position, rfc8785.dumps({"data": {"word": word}, "id": f"evt_{position:032x}", "subject": "job_1"})


def line(each: Event) -> bytes:
    return public_bytes(each[0], LOG, each[1])


def head_of(events: Sequence[Event], *, number: int = 7, position: int | None = None) -> HeadOfOrganization:
    trees = [
        TreeState(organization=OURS, size=len(events), root=root(events)),
        TreeState(organization=THEIRS, size=1, root="00" * 32),
    ]
    head = Head(
        number=number,
        log_id=LOG,
        position=events[-1][0] if position is None else position,
        time="2026-03-01T12:00:00Z",
        trees=tree_of_trees(trees),
    )
    return HeadOfOrganization(
        head=head,
        key_id=key_id_of(PUBLIC),
        signature=KEY.sign(head.signed_bytes()).hex(),
        tree=trees[0],
        membership=membership(trees, OURS),
    )


def root(events: Sequence[Event]) -> str:
    return merkle.root_of([merkle.hash_event(*each) for each in events]).hex()


@dataclass
class Files:
    """The files of one export."""

    folder: Path
    events: Sequence[Event]

    def written(self, lines: Sequence[bytes] | None = None, end: bytes = b"\n") -> Evidence:
        shown = [line(each) for each in self.events] if lines is None else lines
        (self.folder / "events.ndjson").write_bytes(b"".join(each + end for each in shown))
        leaves = [
            f"{position} {merkle.hash_event(position, state).hex()}\n" for position, state in self.events
        ]
        (self.folder / "leaves.txt").write_text("".join(leaves))
        (self.folder / "head.json").write_text(head_of(self.events).model_dump_json())
        keys = {
            "data": [
                {"key_id": key_id_of(PUBLIC), "public_key": PUBLIC.hex(), "since": "2026-01-01T00:00:00Z"}
            ]
        }
        (self.folder / "keys.json").write_text(json.dumps(keys))
        return Evidence.folder(self.folder)


def judged(evidence: Evidence) -> Verdict:
    return verify(evidence, lambda _what, _done, _total: None)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, [event(position) for position in (2, 3, 5, 8, 13, 21, 34)])


def test_what_was_not_touched_is_verified(files: Files) -> None:
    verdict = judged(files.written())
    assert verdict.verified, verdict
    assert (verdict.events, verdict.beyond_head, verdict.organization, verdict.head) == (7, 0, OURS, 7)


def test_our_canonical_form_is_that_of_rfc_8785(files: Files) -> None:
    head = head_of(files.events)
    for value in (head.head.model_dump(), head.model_dump(), head.tree and head.tree.model_dump()):
        assert canonical(value) == rfc8785.dumps(value)


@settings(max_examples=150)
@given(st.data())
def test_any_single_change_is_named(data: st.DataObject) -> None:
    positions = sorted(data.draw(st.sets(st.integers(1, 60), min_size=2, max_size=12)))
    events = [event(position) for position in positions]
    lines = [line(each) for each in events]
    at = data.draw(st.integers(0, len(lines) - 1))
    how = data.draw(
        st.sampled_from(["byte", "word", "position", "dropped", "cut", "inserted", "doubled", "moved"])
    )
    changed = list(lines)
    named = "altered", positions[at]
    if how == "byte":
        place = data.draw(st.integers(0, len(lines[at]) - 1))
        other = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (10, lines[at][place])))
        changed[at] = lines[at][:place] + bytes([other]) + lines[at][place + 1 :]
    elif how == "word":
        changed[at] = line(event(positions[at], "stood still"))
    elif how == "position":
        new = data.draw(st.integers(1, 99).filter(lambda position: position != positions[at]))
        changed[at] = line((new, events[at][1]))
    elif how == "dropped":
        del changed[at]
        named = "dropped", positions[at]
    elif how == "cut":
        del changed[at:]
        named = "dropped", positions[at]
    elif how in ("inserted", "doubled"):
        free = [position for position in range(1, positions[-1]) if position not in positions]
        new = data.draw(st.sampled_from(free)) if free and how == "inserted" else positions[at]
        changed.insert(data.draw(st.integers(at + 1, len(lines))), line(event(new)))
        named = "inserted", new
    else:
        to = data.draw(st.integers(0, len(lines) - 1).filter(lambda place: place != at))
        changed.insert(to, changed.pop(at))
        named = "reordered", positions[min(at, to)]
    with TemporaryDirectory() as folder:
        verdict = judged(Files(Path(folder), events).written(changed))
    assert not verdict.verified
    assert verdict.finding is not None, verdict
    assert (verdict.finding.how, verdict.finding.position) == named, verdict


def test_an_altered_event_is_named_with_its_id_and_line(files: Files) -> None:
    lines = [line(each) for each in files.events]
    lines[3] = lines[3].replace(b"moved", b"stood")
    finding = judged(files.written(lines)).finding
    assert finding is not None
    assert (finding.how, finding.position, finding.line) == ("altered", 8, 4)
    assert finding.event_id == f"evt_{8:032x}"


def test_converted_line_ends_are_told(files: Files) -> None:
    finding = judged(files.written(end=b"\r\n")).finding
    assert finding is not None
    assert "carriage return" in finding.detail


def test_without_a_leaf_file_a_change_is_seen_and_not_named(files: Files) -> None:
    evidence = replace(files.written([line(each) for each in files.events[1:]]), leaves=None)
    verdict = judged(evidence)
    assert not verdict.verified
    assert verdict.finding is None
    assert "--leaves" in (verdict.reason or "")


def test_what_is_newer_than_the_head_is_told_apart(files: Files) -> None:
    lines = [line(each) for each in (*files.events, event(40), event(41))]
    verdict = judged(files.written(lines))
    assert verdict.verified
    assert (verdict.events, verdict.beyond_head) == (7, 2)


def test_a_part_is_verified_by_its_leaves(files: Files) -> None:
    evidence = replace(files.written([line(each) for each in files.events[2:5]]), after=3, until=13)
    verdict = judged(evidence)
    assert verdict.verified, verdict
    assert verdict.events == 3
    files.written([line(files.events[2]), line(files.events[4])])
    finding = judged(evidence).finding
    assert finding is not None
    assert (finding.how, finding.position) == ("dropped", 8)
    with pytest.raises(FileUnfit, match="--leaves"):
        judged(replace(evidence, leaves=None))


def test_the_leaf_file_is_believed_only_under_the_signed_root(files: Files) -> None:
    evidence = files.written([line(each) for each in files.events[:-1]])
    leaves = (files.folder / "leaves.txt").read_text().splitlines(keepends=True)
    for forged in (leaves[:-1], [leaves[1].replace("3 ", "1 ", 1), *leaves[1:]]):
        (files.folder / "leaves.txt").write_text("".join(forged))
        verdict = judged(evidence)
        assert verdict.finding is None
        assert "leaf file" in (verdict.reason or "")
    (files.folder / "leaves.txt").write_text(leaves[0].replace("2 ", "1 ", 1) + "".join(leaves[1:]))
    with pytest.raises(FileUnfit, match="names position 1"):
        judged(evidence)
    (files.folder / "leaves.txt").write_text("2 nonsense\n")
    with pytest.raises(FileUnfit, match="line 1"):
        judged(evidence)


def test_a_head_counts_only_with_its_signature_its_key_and_its_proof(files: Files) -> None:
    evidence = files.written()
    signed = head_of(files.events)
    assert signed.tree is not None
    forgeries = {
        "signature": signed.model_copy(update={"head": signed.head.model_copy(update={"position": 35})}),
        "none of those given": signed.model_copy(update={"key_id": "00" * 32}),
        "not shown": signed.model_copy(update={"tree": signed.tree.model_copy(update={"size": 6})}),
    }
    for reason, forged in forgeries.items():
        evidence.head.write_text(forged.model_dump_json())
        verdict = judged(evidence)
        assert not verdict.verified
        assert reason in (verdict.reason or "")
    pem = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    evidence.keys.write_bytes(pem)
    evidence.head.write_text(signed.model_dump_json())
    assert judged(evidence).verified


def test_heads_kept_from_before_must_agree(files: Files) -> None:
    evidence = files.written()
    kept = files.folder / "kept.json"
    kept.write_text(head_of(files.events[:4], number=3).model_dump_json())
    assert judged(replace(evidence, earlier=(kept,))).earlier_heads == (3,)
    other = [*files.events[:3], event(8, "otherwise")]
    for wrong in (other, [*files.events, event(50)]):
        kept.write_text(head_of(wrong, number=3).model_dump_json())
        verdict = judged(replace(evidence, earlier=(kept,)))
        assert not verdict.verified
        assert "head 3" in (verdict.reason or "")
