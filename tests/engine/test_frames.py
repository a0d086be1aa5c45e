"""Frames are shrunk one by one, decoded once, and forgotten before they take too much memory."""

from pathlib import Path

import pytest

from qlora_engine.data.frames import Frames
from qlora_engine.data.sampling import Sampling
from qlora_engine.errors import ClipUndecodable
from qlora_engine.models.families.smolvlm import SmolVLMVision
from tests.engine.videos import clip_of, write_video


def test_the_longest_unused_clips_are_forgotten_first(tmp_path: Path) -> None:
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4", frames=8)
    clips = [clip_of(tmp_path / f"{name}.mp4", f"{name}.mp4") for name in "abc"]
    one_clip = 4 * 3 * 16 * 16
    vision = SmolVLMVision((0.5,) * 3, (0.5,) * 3, 16, 8, 2)
    frames = Frames(tmp_path, clips, Sampling(frames=4), vision, limit_bytes=2 * one_clip)
    first = {name: frames.of(f"{name}.mp4") for name in "ab"}
    assert frames.of("a.mp4") is first["a"]
    frames.of("c.mp4")
    assert frames.of("a.mp4") is first["a"]
    assert frames.of("b.mp4") is not first["b"]


def test_announced_clips_are_decoded_once_whoever_asks(tmp_path: Path) -> None:
    names = [f"{number}.mp4" for number in range(6)]
    clips = [clip_of(write_video(tmp_path / name, frames=8)) for name in names]
    vision = SmolVLMVision((0.5,) * 3, (0.5,) * 3, 16, 8, 2)
    with Frames(tmp_path, clips, Sampling(frames=4), vision) as frames:
        frames.ahead([*names, *names])
        found = [frames.of(name) for name in reversed(names)]
        assert all(frames.of(name) is one for name, one in zip(reversed(names), found, strict=True))
        assert frames.decoded == 6


def test_what_is_wrong_with_an_announced_clip_is_told_when_it_is_wanted(tmp_path: Path) -> None:
    clip = clip_of(write_video(tmp_path / "a.mp4", frames=8))
    (tmp_path / "a.mp4").write_bytes(b"")
    vision = SmolVLMVision((0.5,) * 3, (0.5,) * 3, 16, 8, 2)
    with Frames(tmp_path, [clip], Sampling(frames=4), vision) as frames:
        frames.ahead(["a.mp4"])
        with pytest.raises(ClipUndecodable, match=r"a\.mp4 cannot be decoded: the file is empty"):
            frames.of("a.mp4")
