"""One folder with everything that can be wrong with clips and captions: each is named, all at once."""

import json
from pathlib import Path

import pytest

from qlora_engine.data.conversations import LONGEST_TEXT
from qlora_engine.data.validation import validate_dataset
from qlora_engine.updates import DatasetVerdict
from schemas.training import DatasetValidationSpec
from tests.engine.conftest import Recorded
from tests.engine.videos import write_broken, write_sound, write_video


def row(video: str, **changes: object) -> str:
    return json.dumps({"video": video, "prompt": "What happens?", "response": "bars grow"} | changes)


def judged(folder: Path, *rows: str) -> DatasetVerdict:
    (folder / "captions.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    spec = DatasetValidationSpec(dataset_folder=str(folder), output_folder=str(folder.parent / "judged"))
    return validate_dataset(spec, Recorded())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_video(folder / "good.mp4")
    return folder


CLIPS = {
    "empty.mp4": ("undecodable_clip", "the file is empty", "record or convert it again"),
    "text.mp4": ("undecodable_clip", "text.mp4 cannot be decoded", "convert it again"),
    "truncated_mp4.mp4": ("undecodable_clip", "truncated_mp4.mp4 cannot be decoded", "convert it again"),
    "truncated_mkv.mkv": ("undecodable_clip", "declares", "only", "decode"),
    "only_headers.mkv": ("undecodable_clip", "only_headers.mkv cannot be decoded", "convert it again"),
    "without_pictures.mp4": (
        "undecodable_clip",
        "without_pictures.mp4 cannot be decoded",
        "convert it again",
    ),
    "overwritten.mp4": ("undecodable_clip", "overwritten.mp4 cannot be decoded", "convert it again"),
    "playlist.mp4": ("undecodable_clip", "playlist.mp4 cannot be decoded"),
    "sound.m4a": ("no_video_stream", "sound.m4a holds no video stream", "leave it out"),
}
"""By file: the code, and what its problem says."""

ROWS: dict[str, tuple[str, ...]] = {
    '{"video": ': ("bad_caption_row", "does not parse", "correct it"),
    "[]": ("bad_caption_row", "not an object", "write {"),
    row("gone.mp4"): ("missing_clip", "'gone.mp4'", "upload it or correct the name"),
    row("../good.mp4"): ("bad_clip_path", "'../good.mp4'", "inside the dataset folder"),
    row("/etc/passwd"): ("bad_clip_path", "'/etc/passwd'", "relative path"),
    row("folder.mp4"): ("missing_clip", "'folder.mp4' is not among the files"),
    row("link.mp4"): ("bad_clip_path", "'link.mp4' is a link that leaves", "copy the file in"),
    row("good.mp4", prompt=7): ("bad_caption_row", "prompt is 7", "put it in quotes"),
    row("good.mp4", response=""): ("bad_caption_row", "response is empty", "fill it in"),
    row("good.mp4", response=None): ("bad_caption_row", "response is missing", "add it"),
    json.dumps({"video": "good.mp4", "promt": "?", "response": "!"}): (
        "bad_caption_row",
        "unknown field 'promt'",
        "rename it",
    ),
    row("good.mp4", response="x" * (LONGEST_TEXT + 1)): (
        "bad_caption_row",
        f"at most {LONGEST_TEXT}",
        "shorten it",
    ),
}


def test_every_clip_and_every_row_is_named(folder: Path) -> None:
    for name in CLIPS:
        if name != "sound.m4a":
            write_broken(Path(name).stem, folder)
    write_sound(folder / "sound.m4a")
    (folder / "folder.mp4").mkdir()
    (folder / "link.mp4").symlink_to("/etc/hostname")

    verdict = judged(folder, *ROWS, row("good.mp4"), *map(row, CLIPS))

    assert (verdict.facts, verdict.manifest_file) == (None, None)
    expected = {
        f"captions.jsonl:{number}": said for number, said in enumerate(ROWS.values(), start=1)
    } | CLIPS
    found = {problem.where: problem for problem in verdict.problems}
    assert found.keys() == expected.keys()
    for where, (code, *says) in expected.items():
        assert found[where].code == code, found[where]
        assert [part for part in says if part not in found[where].message] == [], found[where]
        assert str(folder) not in found[where].message


def test_what_is_odd_but_can_be_trained_on_is_warned_about(folder: Path) -> None:
    write_video(folder / "still.mp4", frames=1)

    verdict = judged(folder, row("good.mp4"), row("still.mp4"), row("good.mp4"))

    assert verdict.problems == ()
    assert verdict.facts is not None
    assert (verdict.facts.smallest_clip, verdict.facts.smallest_clip_frames) == ("still.mp4", 1)
    warnings = {warning.where: (warning.code, warning.message) for warning in verdict.facts.warnings}
    assert warnings.keys() == {"captions.jsonl:3", "still.mp4"}
    assert warnings["captions.jsonl:3"][0] == "duplicate_row"
    assert warnings["still.mp4"][0] == "short_clip"
    assert "has 1 frame, and a job takes 4" in warnings["still.mp4"][1]
    assert "set frames to 1" in warnings["still.mp4"][1]


@pytest.mark.parametrize("rows", [(), ("", "  ")])
def test_a_dataset_without_rows(folder: Path, rows: tuple[str, ...]) -> None:
    (problem,) = judged(folder, *rows).problems
    assert (problem.code, "write one per clip" in problem.message) == ("no_examples", True)
