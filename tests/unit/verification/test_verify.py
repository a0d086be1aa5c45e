"""Any single change of an export is found, and named for what it is."""

import json
from collections.abc import Callable, Sequence
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
    assert (verdict.first, verdict.events, verdict.of, verdict.organization, verdict.head) == (
        1,
        7,
        7,
        OURS,
        7,
    )


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


def test_an_export_older_than_the_head_is_told_from_a_forged_one(files: Files) -> None:
    older = replace(files.written([line(each) for each in files.events[:-1]]), leaves=None)
    reason = judged(older).reason or ""
    assert f"the files hold {len(files.events) - 1} events" in reason
    assert f"vouches for {len(files.events)}, up to position {files.events[-1][0]}" in reason


def test_a_line_that_is_no_event_is_named_by_its_number(files: Files) -> None:
    evidence = files.written()
    evidence.events[0].write_bytes(evidence.events[0].read_bytes() + b"hello\n")
    assert (judged(evidence).reason or "").startswith(f"line {len(files.events) + 1} was inserted")


def test_what_is_newer_than_the_head_is_told_apart(files: Files) -> None:
    """Nobody vouches for it: it may be anything, and an older head may stand in the place of the latest."""
    lines = [line(each) for each in (*files.events, event(40), event(41))]
    evidence = files.written(lines)
    verdict = judged(evidence)
    assert not verdict.verified
    assert "2 of the lines stand behind position 34" in (verdict.reason or "")
    verdict = judged(replace(evidence, until=34))
    assert verdict.verified
    assert (verdict.events, verdict.left_out) == (7, 2)
    with pytest.raises(FileUnfit, match="--until 34"):
        judged(replace(evidence, until=41))


def test_a_part_is_verified_by_its_leaves(files: Files) -> None:
    evidence = replace(files.written([line(each) for each in files.events[2:5]]), after=3, until=13)
    verdict = judged(evidence)
    assert verdict.verified, verdict
    assert (verdict.first, verdict.events, verdict.of) == (3, 3, 7)
    with pytest.raises(FileUnfit, match="--after 34"):
        judged(replace(evidence, after=34, until=None))
    with pytest.raises(FileUnfit, match="no event behind position 8 up to 12"):
        judged(replace(evidence, after=8, until=12))
    files.written([line(each) for each in files.events[1:5]])
    finding = judged(evidence).finding
    assert finding is not None
    assert (finding.how, finding.position) == ("inserted", 3)
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
    for broken in (
        "2 nonsense\n",
        f"{2**64} {'00' * 32}\n",
        f"{'9' * 5000} {'00' * 32}\n",
        "\ufeff" + leaves[0],
    ):
        (files.folder / "leaves.txt").write_text(broken)
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


def test_what_was_slipped_in_behind_a_kept_head_s_last_event_is_told(files: Files) -> None:
    """The beginning is as the kept head says, and yet it vouched for there being no more."""
    evidence = files.written()
    kept = files.folder / "kept.json"
    for size, position in ((4, 12), (0, 1), (7, 40)):
        kept.write_text(head_of(files.events[:size], number=3, position=position).model_dump_json())
        assert judged(replace(evidence, earlier=(kept,))).verified, size
    for size, position, slipped in ((4, 13, 13), (0, 2, 2)):
        kept.write_text(head_of(files.events[:size], number=3, position=position).model_dump_json())
        for later in (evidence, replace(evidence, after=2)):
            if later.after:
                files.written([line(each) for each in files.events[1:]])
            verdict = judged(replace(later, earlier=(kept,)))
            assert not verdict.verified
            assert f"one more, at {slipped}" in (verdict.reason or "")
        files.written()


def test_an_older_head_in_the_place_of_the_latest_is_told_by_a_kept_one(files: Files) -> None:
    evidence = files.written([line(each) for each in files.events[:4]])
    kept = files.folder / "kept.json"
    evidence.head.replace(kept)
    evidence.head.write_text(head_of(files.events[:4], number=3).model_dump_json())
    assert judged(evidence).verified
    verdict = judged(replace(evidence, earlier=(kept,)))
    assert not verdict.verified
    assert "older one" in (verdict.reason or "")


@pytest.mark.parametrize("place", [0, 1])
def test_a_byte_order_mark_is_told(files: Files, place: int) -> None:
    lines = [line(each) for each in files.events]
    lines[place] = b"\xef\xbb\xbf" + lines[place]
    finding = judged(files.written(lines)).finding
    assert finding is not None
    assert (finding.how, finding.position) == ("altered", files.events[place][0])
    assert "byte order mark" in finding.detail


def test_lines_of_another_log_are_told(files: Files) -> None:
    finding = judged(
        files.written([line(each).replace(LOG.encode(), b"log_other") for each in files.events])
    ).finding
    assert finding is not None
    assert "of log_other" in finding.detail


def test_whoever_reads_a_finding_is_shown_nothing_that_a_forger_wrote(files: Files) -> None:
    """Ids are ids or nothing; nesting and numbers that no parser takes are findings like all others."""
    for forged in (b'"id":"\\u001b[2Jverified"}', b"[" * 100_000, b'"n":' + b"9" * 5000 + b"}", b"\xff\x00"):
        lines = [line(each) for each in files.events]
        lines[1] = lines[1][: len(b'{"position":3,"source":"urn:kinora:log_0192",')] + forged
        finding = judged(files.written(lines)).finding
        assert finding is not None
        assert (finding.how, finding.position, finding.event_id) == ("altered", 3, None)
    evidence = files.written()
    for part, value in (("tree", {"organization": "verified\n"}), ("head", {"log_id": "log_\n"})):
        signed = json.loads(evidence.head.read_bytes())
        signed[part] |= value
        evidence.head.write_text(json.dumps(signed))
        with pytest.raises(FileUnfit, match=part):
            judged(evidence)
        files.written()


@pytest.mark.parametrize("trailing", [b"\n", b" \n", b"{}\n", b"\x00" * 100])
def test_nothing_may_follow_the_last_event(files: Files, trailing: bytes) -> None:
    evidence = files.written()
    evidence.events[0].write_bytes(evidence.events[0].read_bytes() + trailing)
    for each in (evidence, replace(evidence, leaves=None)):
        assert not judged(each).verified


def test_no_lines_at_all_are_a_dropped_first_event(files: Files) -> None:
    evidence = files.written([])
    finding = judged(evidence).finding
    assert finding is not None
    assert (finding.how, finding.position, finding.file, finding.line) == (
        "dropped",
        2,
        str(evidence.events[0]),
        1,
    )


def documented_program() -> str:
    page = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
    return page.split("## Verifying")[1].split("```python\n")[1].split("```")[0]


def says(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a program that has nothing of ours believes the folder, also without assertions."""
    monkeypatch.setattr("sys.argv", ["-", str(folder)])
    printed: list[str] = []
    try:
        exec(
            compile(program, "events.md", "exec", optimize=1),
            {"print": lambda *each: printed.append(each[0])},
        )
    except (SystemExit, Exception):
        return False
    return printed == ["verified"]


Lines = list[bytes]


def mixed(lines: Lines) -> None:
    lines[2:2] = [line(event(4)).replace(b"job_1", b"job_2")]


FORGERIES: dict[str, Callable[[Lines], object]] = {
    "altered": lambda lines: lines.__setitem__(3, lines[3].replace(b"moved", b"stood")),
    "dropped": lambda lines: lines.pop(3),
    "another organization's": mixed,
    "reordered": lambda lines: lines.insert(1, lines.pop(4)),
    "doubled": lambda lines: lines.insert(1, lines[0]),
    "truncated": lambda lines: lines.__delitem__(slice(4, None)),
    "half a line": lambda lines: lines.__setitem__(-1, lines[-1][:-9]),
    "position": lambda lines: lines.__setitem__(3, lines[3].replace(b":8,", b":9,", 1)),
    "position with a zero": lambda lines: lines.__setitem__(3, lines[3].replace(b":8,", b":08,", 1)),
    "source": lambda lines: lines.__setitem__(3, lines[3].replace(LOG.encode(), b"log_0193")),
    "blank": lambda lines: lines.insert(2, b""),
    "space": lambda lines: lines.__setitem__(2, lines[2] + b" "),
    "carriage return": lambda lines: lines.__setitem__(2, lines[2] + b"\r"),
    "byte order mark": lambda lines: lines.__setitem__(0, b"\xef\xbb\xbf" + lines[0]),
    "huge": lambda lines: lines.insert(2, b'{"position":4,' + b"x" * 5_000_000),
    "newer": lambda lines: lines.append(line(event(40))),
    "nothing": lambda lines: lines.clear(),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_stranger_s_program_believes_no_forgery_either(
    files: Files, forge: Callable[[Lines], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = documented_program()
    evidence = files.written()
    assert says(program, files.folder, monkeypatch)
    lines = [line(each) for each in files.events]
    forge(lines)
    files.written(lines)
    assert not says(program, files.folder, monkeypatch)
    for each in (evidence, replace(evidence, leaves=None)):
        assert not judged(each).verified


def test_a_stranger_s_program_believes_no_forged_head(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    program, signed = documented_program(), head_of(files.events)
    evidence = files.written()
    assert signed.membership is not None
    assert signed.tree is not None
    shorter, longer = signed.membership.path[:-1], (*signed.membership.path, "00" * 32)
    for change in (
        {"membership": signed.membership.model_copy(update={"path": shorter})},
        {"membership": signed.membership.model_copy(update={"path": longer})},
        {"membership": signed.membership.model_copy(update={"index": 1})},
        {"head": signed.head.model_copy(update={"number": 8})},
        {"tree": signed.tree.model_copy(update={"organization": THEIRS})},
        {"key_id": "00" * 32},
    ):
        evidence.head.write_text(signed.model_copy(update=change).model_dump_json())
        assert not says(program, files.folder, monkeypatch)
        assert not judged(evidence).verified
