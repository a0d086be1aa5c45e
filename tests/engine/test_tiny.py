"""The tiny model is an ordinary checkpoint, made the same way each time; the caller's state is left alone."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from qlora_engine.shapes import make_sample_dataset
from qlora_engine.tiny import make_tiny_model


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
