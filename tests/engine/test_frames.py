"""Frames are shrunk one by one, decoded once, and forgotten before they take too much memory."""

from pathlib import Path

from qlora_engine.data.frames import Frames
from qlora_engine.data.sampling import Sampling
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
