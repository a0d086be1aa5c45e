"""The tiny model is an ordinary checkpoint, made the same way each time; the caller's state is left alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qlora_engine.data.shapes import make_sample_dataset
from qlora_engine.models.tiny import make_tiny_model


def test_the_same_seed_makes_the_same_model(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    torch.manual_seed(11)
    threads = torch.get_num_threads()
    first = make_tiny_model(tmp_path / "a", lambda _what, done, total: seen.append((done, total)), steps=3)
    drawn = torch.rand(1)
    second = make_tiny_model(tmp_path / "b", steps=3)
    torch.manual_seed(11)

    assert torch.equal(drawn, torch.rand(1))
    assert torch.get_num_threads() == threads
    assert seen == [(1, 3), (2, 3), (3, 3)]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {file.suffix for file in first.iterdir()} == {".json", ".safetensors", ".jinja"}


def test_every_direction_is_equally_frequent(tmp_path: Path) -> None:
    rows = (make_sample_dataset(tmp_path, clips=12) / "captions.jsonl").read_text("utf-8").splitlines()
    assert [sum(f" moves {way}" in row for row in rows) for way in ("left", "right", "up", "down")] == [
        3,
        3,
        3,
        3,
    ]


@pytest.mark.parametrize("module", ["qlora_engine.models.tiny", "qlora_engine.data.shapes"])
def test_a_folder_that_cannot_be_filled_is_one_line(module: str, tmp_path: Path) -> None:
    def refusal(folder: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, str(folder)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        return line

    (tmp_path / "kept").write_text("mine", "utf-8")
    assert refusal(tmp_path).endswith("is not empty; name a folder that is empty or does not exist")
    if module == "qlora_engine.data.shapes":  # the other takes long to start and shares the rule
        assert "Not a directory" in refusal(tmp_path / "kept" / "below")
        assert "File exists" in refusal(tmp_path / "kept")
    assert (tmp_path / "kept").read_text("utf-8") == "mine"
