"""Frames are shrunk one by one, decoded once, and forgotten before they take too much memory."""

import weakref
from pathlib import Path

import pytest

from qlora_engine.data.frames import Frames
from qlora_engine.data.video import Picture, sample_clip
from qlora_engine.models.families.smolvlm import SmolVLMVision
from tests.engine.videos import HEIGHT, WIDTH, write_video


@pytest.mark.parametrize("container", ["mp4", "avi"], ids=["seeking", "counting"])
def test_never_more_than_a_few_whole_pictures_are_in_memory(container: str, tmp_path: Path) -> None:
    file = write_video(tmp_path / f"clip.{container}", frames=40, options={"g": "5"})
    seen: list[weakref.ref[Picture]] = []
    most = 0

    def shrink(picture: Picture) -> Picture:
        nonlocal most
        assert picture.shape == (HEIGHT, WIDTH, 3)
        seen.append(weakref.ref(picture))
        most = max(most, sum(one() is not None for one in seen))
        return picture[:2, :2].copy()

    sampled = sample_clip(file, 20, shrink)
    assert len(sampled.pictures) == 20
    assert most <= 2


def test_the_longest_unused_clips_are_forgotten_first(tmp_path: Path) -> None:
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4", frames=8)
    one_clip = 4 * 3 * 16 * 16
    frames = Frames(tmp_path, 4, SmolVLMVision((0.5,) * 3, (0.5,) * 3, 16, 8, 2), limit_bytes=2 * one_clip)
    first = {name: frames.of(f"{name}.mp4") for name in "ab"}
    assert frames.of("a.mp4") is first["a"]
    frames.of("c.mp4")
    assert frames.of("a.mp4") is first["a"]
    assert frames.of("b.mp4") is not first["b"]
