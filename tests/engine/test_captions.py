"""Captions files are read row by row, and every wrong row is named with its number."""

import json
from pathlib import Path

import pytest

from qlora_engine.data.captions import read_captions, repeated_rows
from qlora_engine.errors import CaptionsError
from schemas.datasets import Example, one_turn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4", "späte Blüte.mp4"):
        (tmp_path / "clips" / name).write_bytes(b"x")
    return tmp_path


def jsonl(folder: Path, *rows: object) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def row(video: str = "clips/a.mp4", **changes: object) -> dict[str, object]:
    return {"video": video, "prompt": "What happens?", "response": "a dog runs"} | changes


def test_jsonl_rows_become_examples(folder: Path) -> None:
    jsonl(folder, row(), "", row("./clips/späte Blüte.mp4", response="ein Vogel\u2028fliegt", extra=1))
    captions = read_captions(folder)
    assert captions.problems == ()
    assert captions.examples == (
        Example(
            clip="clips/a.mp4",
            messages=one_turn("What happens?", "a dog runs"),
            file="captions.jsonl",
            row=1,
        ),
        Example(
            clip="clips/späte Blüte.mp4",
            messages=one_turn("What happens?", "ein Vogel\u2028fliegt"),
            file="captions.jsonl",
            row=3,
        ),
    )


def test_csv_with_quotes_line_breaks_and_a_byte_order_mark(folder: Path) -> None:
    text = 'response,video,prompt\r\n"one, ""two""\nthree",clips/a.mp4,Why?\r\nno,clips/b.mp4,Why?\r\n'
    (folder / "captions.csv").write_text(text, "utf-8-sig", newline="")
    captions = read_captions(folder)
    assert captions.problems == ()
    assert [(example.response, example.row) for example in captions.examples] == [
        ('one, "two"\nthree', 1),
        ("no", 2),
    ]


@pytest.mark.parametrize(
    ("bad", "code", "says"),
    [
        ('{"video": ', "bad_caption_row", "does not parse"),
        ("[1]", "bad_caption_row", "not an object"),
        ({"video": "clips/a.mp4", "prompt": "x"}, "bad_caption_row", "response is missing"),
        (row() | {"response": None}, "bad_caption_row", "response is missing; add it"),
        (
            {"video": "clips/a.mp4", "note": 1, "promt": "x", "response": "y"},
            "bad_caption_row",
            "prompt is missing, and the row has the unknown field 'promt'",
        ),
        (row(prompt=7), "bad_caption_row", "prompt is 7, not text"),
        (row(response="  "), "bad_caption_row", "response is empty"),
        (row(response="\ud800"), "bad_caption_row", "surrogate"),
        (row("clips/none.mp4"), "missing_clip", "not among the files"),
        (row("../a.mp4"), "bad_clip_path", "inside the dataset folder"),
        (row("/etc/passwd"), "bad_clip_path", "inside the dataset folder"),
        (row("clips\\a.mp4"), "bad_clip_path", "forward slashes"),
        (row("clips/link.mp4"), "bad_clip_path", "leaves the dataset folder"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_kept(bad: object, code: str, says: str, folder: Path) -> None:
    (folder / "clips" / "link.mp4").symlink_to("/etc/hostname")
    jsonl(folder, row(), bad, row("clips/b.mp4"))
    captions = read_captions(folder)
    assert [example.row for example in captions.examples] == [1, 3]
    (problem,) = captions.problems
    assert (problem.code, problem.where) == (code, "captions.jsonl:2")
    assert says in problem.message


def test_repeated_rows_are_named_by_their_numbers(folder: Path) -> None:
    jsonl(folder, row(), row("clips/b.mp4"), row("./clips/a.mp4"), row(response="it sits"), row())
    (warning,) = repeated_rows(read_captions(folder))
    assert (warning.code, warning.where) == ("duplicate_row", "captions.jsonl:3")
    assert "rows 3, 5 have the same video, prompt and response as row 1" in warning.message
    assert "count 3 times" in warning.message


def test_rows_that_differ_are_not_repeated(folder: Path) -> None:
    jsonl(folder, row(), row("clips/b.mp4"), row(prompt="Why?"), row(response="it sits"))
    assert repeated_rows(read_captions(folder)) == ()


def test_files_that_cannot_be_read_as_a_whole(folder: Path) -> None:
    with pytest.raises(CaptionsError, match="missing") as none:
        read_captions(folder)
    assert none.value.code == "missing_captions"

    (folder / "captions.csv").write_text("video;prompt;response\na;b;c\n", "utf-8")
    with pytest.raises(CaptionsError, match="separate fields with commas") as header:
        read_captions(folder)
    assert header.value.code == "bad_captions_header"

    jsonl(folder, row())
    with pytest.raises(CaptionsError, match="keep only one") as two:
        read_captions(folder)
    assert two.value.code == "two_captions_files"

    (folder / "captions.csv").unlink()
    (folder / "captions.jsonl").write_bytes(b'{"video": "\xff"}\n')
    with pytest.raises(CaptionsError, match="not UTF-8"):
        read_captions(folder)

    (folder / "captions.jsonl").write_text("\n\n", "utf-8")
    with pytest.raises(CaptionsError, match="no rows") as empty:
        read_captions(folder)
    assert empty.value.code == "no_examples"
