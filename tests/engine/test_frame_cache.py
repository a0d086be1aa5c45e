"""Frames on disk are found by content, whole or not at all, and never more than there is room for."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qlora_engine.data.frame_cache import ABANDONED_SECONDS, SUFFIX, UNFINISHED, FrameCache, key
from qlora_engine.data.frames import Frames
from qlora_engine.data.pictures import Size
from qlora_engine.data.sampling import Sampling
from qlora_engine.data.video import SampledClip
from qlora_engine.models.families.smolvlm import SmolVLMVision
from tests.engine.videos import clip_of, write_video

VISION = SmolVLMVision((0.5,) * 3, (0.5,) * 3, 16, 8, 2)
FOUR = Sampling(frames=4)
ENTRY = 4 * 16 * 16 * 3 + 200
"""Bytes that one needs, roughly."""


def sampled(seed: int) -> SampledClip:
    pictures = np.random.default_rng(seed).integers(0, 256, (4, 16, 16, 3), np.uint8)
    return SampledClip(tuple(pictures), (0.1, 0.35, 0.6, 1 / 3), 1 / 7)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"??/*{SUFFIX}"))


def test_what_was_put_is_got_bit_for_bit(tmp_path: Path) -> None:
    cache, clip = FrameCache(tmp_path, 1 << 30), sampled(1)
    assert cache.get("ab") is None
    assert cache.put("ab", clip)
    found = cache.get("ab")
    assert found is not None
    assert (found.digests, found.seconds, found.duration) == (clip.digests, clip.seconds, clip.duration)


def test_the_name_tells_clip_sampling_and_size() -> None:
    names = {
        key(sha256, sampling, size)
        for sha256 in ("a" * 64, "b" * 64)
        for sampling in (FOUR, Sampling(frames=5), Sampling(frames_per_second=2))
        for size in (Size(16, 8), Size(8, 16))
    }
    assert len(names) == 12


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_entry_is_none_and_goes(damage: str, tmp_path: Path) -> None:
    cache = FrameCache(tmp_path, 1 << 30)
    cache.put("ab", sampled(1))
    (entry,) = entries(tmp_path)
    content = bytearray(entry.read_bytes())
    content[-7] ^= 1
    entry.write_bytes({"cut": content[:-9], "changed": content, "empty": b""}[damage])
    assert cache.get("ab") is None
    assert entries(tmp_path) == []


def test_what_was_unused_longest_leaves_first(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path, 10 * ENTRY)
    for number in range(8):
        cache.put(f"{number:02d}", sampled(number))
        (place,) = (path for path in entries(tmp_path) if path.name.startswith(f"{number:02d}"))
        os.utime(place, (number, number))
    assert cache.get("00") is not None
    for number in range(8, 12):
        cache.put(f"{number:02d}", sampled(number))
    left = {path.name.removesuffix(SUFFIX) for path in entries(tmp_path)}
    assert {"00", "11"} <= left
    assert not {"01", "02"} & left
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 10 * ENTRY


def test_what_is_larger_than_all_room_is_not_kept(tmp_path: Path) -> None:
    assert not FrameCache(tmp_path, 1000).put("ab", sampled(1))
    assert entries(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = FrameCache(tmp_path / "file" / "folder", 1 << 30)
    assert not cache.put("ab", sampled(1))
    assert cache.get("ab") is None


def test_what_a_killed_process_began_is_cleaned_up(tmp_path: Path) -> None:
    FrameCache(tmp_path, 1 << 20).put("ab", sampled(1))
    old, new = (tmp_path / "ab" / f"{name}{UNFINISHED}" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    long_ago = new.stat().st_mtime - 2 * ABANDONED_SECONDS
    os.utime(old, (long_ago, long_ago))
    FrameCache(tmp_path, 1 << 20).put("cd", sampled(2))
    assert (old.exists(), new.exists()) == (False, True)


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from qlora_engine.data.frame_cache import FrameCache
from qlora_engine.data.video import SampledClip

def sampled(seed):
    pictures = np.random.default_rng(seed).integers(0, 256, (4, 16, 16, 3), np.uint8)
    return SampledClip(tuple(pictures), (0.1, 0.35, 0.6, 1 / 3), 1 / 7)

cache = FrameCache(Path(sys.argv[1]), int(sys.argv[3]))
for turn in range(60):
    number = (turn * 7 + int(sys.argv[2])) % 40
    found = cache.get(f"{number:02d}")
    assert found is None or found.digests == sampled(number).digests
    assert cache.put(f"{number:02d}", sampled(number))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number), str(20 * ENTRY)])
        for number in range(2)
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    assert 0 < sum(path.stat().st_size for path in entries(tmp_path)) <= 21 * ENTRY
    assert not list(tmp_path.glob(f"??/*{UNFINISHED}"))


def test_neither_another_run_nor_another_name_decodes_again(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mp4", frames=8)
    (tmp_path / "same.mp4").write_bytes(file.read_bytes())
    clips = [clip_of(tmp_path / name) for name in ("a.mp4", "same.mp4")]
    cache = FrameCache(tmp_path / "cache", 1 << 30)
    first, second = (Frames(tmp_path, clips, FOUR, VISION, cache=cache) for _ in range(2))
    assert first.of("a.mp4").digests == first.of("same.mp4").digests == second.of("a.mp4").digests
    assert (first.decoded, second.decoded) == (1, 0)
    (entry,) = entries(tmp_path / "cache")
    entry.write_bytes(b"damaged")
    third = Frames(tmp_path, clips, FOUR, VISION, cache=cache)
    assert third.of("a.mp4").digests == first.of("a.mp4").digests
    assert third.decoded == 1
