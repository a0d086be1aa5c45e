"""What `kinora datasets add` sends of a folder, and when it refuses to."""

import json
from pathlib import Path

import pytest

from kinora.sources import BadSource, dataset_paths


def talk(row: int, **more: str) -> dict[str, str]:
    return {"prompt": f"{row}?", "response": "!"} | more


def test_captions_of_both_files_and_their_clips_are_sent(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "unused.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "captions.json").write_text(json.dumps([talk(1, video="a.mp4"), talk(2)]))
    (tmp_path / "captions.validation.csv").write_text("video,prompt,response\nb.mp4,?,!\n")
    assert dataset_paths(tmp_path) == ["captions.json", "captions.validation.csv", "a.mp4", "b.mp4"]


def test_a_few_bad_rows_are_left_to_the_validation_and_many_are_refused(tmp_path: Path) -> None:
    rows = [*(talk(row) for row in range(9)), talk(9, video="gone.mp4")]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    assert dataset_paths(tmp_path) == ["captions.json"]
    (tmp_path / "captions.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(BadSource, match="cannot be used") as refused:
        dataset_paths(tmp_path)
    assert [error.pointer for error in refused.value.errors] == ["captions.json:9"]
