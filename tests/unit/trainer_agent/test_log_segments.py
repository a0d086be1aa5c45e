"""Printed lines are taken whole, once, and bounded."""

from pathlib import Path

import pytest

from trainer_agent.bounded_log import forget
from trainer_agent.log_segments import Tail, segment_due_seconds


def test_a_line_is_taken_when_it_is_finished(tmp_path: Path) -> None:
    file = tmp_path / "engine.log"
    tail = Tail(file)
    assert tail.read(1000) == []
    file.write_bytes(b"one\ntw")
    assert tail.read(1000) == ["one"]
    with file.open("ab") as more:
        more.write(b"o\n\nthree")
    assert tail.read(1000) == ["two"]
    assert tail.read(1000) == []
    assert tail.remainder() == ["three"]
    assert tail.remainder() == []


def test_a_progress_bar_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "engine.log"
    file.write_bytes(b"10%\r20%\r100% done\r\nnext\n")
    assert Tail(file).read(1000) == ["100% done", "next"]


def test_an_endless_line_does_not_grow_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "engine.log"
    file.write_bytes(b"x" * 100_000)
    tail = Tail(file)
    assert [len(line) for line in tail.read(50_000)] == [8192]
    assert [len(line) for line in tail.read(50_000)] == [8192]


def test_what_was_forgotten_is_skipped_and_said(tmp_path: Path) -> None:
    file = tmp_path / "engine.log"
    file.write_bytes(b"".join(b"line %06d\n" % number for number in range(100_000)))
    before = file.stat()

    forget(file, 1_000_000)

    after = file.stat()
    assert after.st_size == before.st_size
    assert (before.st_blocks - after.st_blocks) * 512 >= 900_000
    tail = Tail(file)
    lines = [line for _ in range(10) for line in tail.read(100_000)]
    assert "came too fast to be kept" in lines[0]
    numbers = [int(line.removeprefix("line ")) for line in lines[1:]]
    assert numbers == list(range(numbers[0], 100_000))
    assert 80_000 < numbers[0] < 85_000


@pytest.mark.parametrize(("age", "due"), [(0, 10), (400, 10), (5000, 100), (10**6, 600)])
def test_segments_become_rarer(age: float, due: float) -> None:
    assert segment_due_seconds(age) == due
