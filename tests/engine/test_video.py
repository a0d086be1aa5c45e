"""Clips of every common kind are read by their time stamps; broken ones are refused by name."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from qlora_engine.data.sampling import Sampling, Timeline
from qlora_engine.data.video import probe_clip, sample_clip
from qlora_engine.errors import ClipUndecodable, ClipWithoutVideo, FramesExceedClip
from tests.engine.videos import (
    HEIGHT,
    WIDTH,
    declare_frames,
    decoded,
    shown_index,
    trim_end,
    write_broken,
    write_sound,
    write_video,
)

CODECS = {"libx264": "h264", "libx265": "hevc", "libvpx-vp9": "vp9", "libsvtav1": "av1", "mpeg4": "mpeg4"}
CONTAINERS = {
    "libx264": ("mp4", "mov", "mkv", "avi"),
    "libx265": ("mp4", "mov", "mkv"),
    "libvpx-vp9": ("mp4", "mkv", "webm", "avi"),
    "libsvtav1": ("mp4", "mkv", "webm", "avi"),
    "mpeg4": ("mp4", "mov", "mkv", "avi"),
}
COMBINATIONS = [(codec, container) for codec in CODECS for container in CONTAINERS[codec]]


@pytest.mark.parametrize("audio", [False, True], ids=["silent", "sound"])
@pytest.mark.parametrize(("codec", "container"), COMBINATIONS)
def test_every_codec_in_every_container(codec: str, container: str, audio: bool, tmp_path: Path) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot encode {codec}")
    file = write_video(tmp_path / f"clip.{container}", codec, audio=audio)

    probed = probe_clip(file)
    sampled = sample_clip(file, Sampling(frames=4))

    assert probed.codec == CODECS[codec]
    assert (probed.frames, probed.width, probed.height, probed.rotation) == (20, WIDTH, HEIGHT, 0)
    assert probed.has_audio is audio
    assert probed.duration_seconds == pytest.approx(2.0, abs=0.01)
    assert not probed.variable_frame_rate
    assert [shown_index(picture, 20) for picture in sampled.pictures] == [2, 7, 12, 17]
    assert sampled.seconds == pytest.approx([0.2, 0.7, 1.2, 1.7], abs=0.005)


def test_variable_frame_rate_is_sampled_by_time_not_by_count(tmp_path: Path) -> None:
    times = [*range(0, 500, 50), 1000, 2000, 3000]  # ten quick frames, then one every second
    file = write_video(tmp_path / "phone.mp4", frames=len(times), milliseconds=times, options={"bf": "0"})

    probed = probe_clip(file)
    sampled = sample_clip(file, Sampling(frames=4))

    assert probed.variable_frame_rate
    assert probed.frames == len(times)
    shown = [shown_index(picture, len(times)) for picture in sampled.pictures]
    expected = Timeline(tuple(time / 1000 for time in times), sampled.duration).evenly(4)
    assert shown == expected
    assert shown == [7, 10, 10, 11]  # by counting it would be 1, 4, 8, 11


@pytest.mark.parametrize(
    ("counter_clockwise", "clockwise", "red"), [(90, 270, (-3, 2)), (180, 180, (-3, -3)), (-90, 90, (2, -3))]
)
def test_rotation_is_applied(
    counter_clockwise: int, clockwise: int, red: tuple[int, int], tmp_path: Path
) -> None:
    file = write_video(tmp_path / "turned.mp4", rotation=counter_clockwise)

    probed = probe_clip(file)
    picture = sample_clip(file, Sampling(frames=2)).pictures[0]

    assert probed.rotation == clockwise
    assert picture.shape == (probed.height, probed.width, 3)
    assert (probed.width, probed.height) == ((WIDTH, HEIGHT) if clockwise == 180 else (HEIGHT, WIDTH))
    red_value, green_value, _ = picture[red]
    assert red_value > 200
    assert green_value < 60


def test_seeking_and_scanning_find_the_same_frames(tmp_path: Path) -> None:
    seekable = write_video(tmp_path / "seek.mp4", frames=200, options={"g": "10"})
    one_group = write_video(tmp_path / "scan.mp4", frames=200, options={"g": "400"})

    for file, count in itertools.product((seekable, one_group), (2, 5)):
        whole = decoded(file)
        sampled = sample_clip(file, Sampling(frames=count))
        indices = [int((place + 0.5) * 200 / count) for place in range(count)]
        assert sampled.seconds == pytest.approx([index / 10 for index in indices], abs=0.01)
        for picture, index in zip(sampled.pictures, indices, strict=True):
            assert np.array_equal(picture, whole[index])


OPEN_GROUPS = {
    "libx264": {"x264-params": "open-gop=1:keyint=10:min-keyint=10:bframes=3:b-adapt=0:scenecut=0"},
    "libx265": {"x265-params": "open-gop=1:keyint=10:bframes=3:scenecut=0:log-level=none"},
    "mpeg4": {"g": "10", "bf": "2"},
}


@pytest.mark.parametrize(("codec", "container"), [("libx264", "mp4"), ("libx265", "mkv"), ("mpeg4", "mp4")])
def test_seeking_is_right_where_groups_lean_on_one_another(
    codec: str, container: str, tmp_path: Path
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot encode {codec}")
    file = write_video(tmp_path / f"open.{container}", codec, frames=96, options=OPEN_GROUPS[codec])
    whole = decoded(file)
    for count in (1, 3, 8):
        expected = [whole[int((place + 0.5) * 96 / count)] for place in range(count)]
        sampled = sample_clip(file, Sampling(frames=count)).pictures
        assert all(np.array_equal(one, other) for one, other in zip(sampled, expected, strict=True))


def test_trimmed_without_encoding_again_only_what_is_shown_counts(tmp_path: Path) -> None:
    """Phones trim by an edit list: the hidden frames are still in the file, and it is whole all the same."""
    file = write_video(tmp_path / "trimmed.mp4", frames=40, first=-10)  # times before 0 are hidden
    trim_end(file, 2 / 3)

    probed = probe_clip(file)
    sampled = sample_clip(file, Sampling(frames=4))

    assert probed.frames == 20
    assert probed.duration_seconds == pytest.approx(2.0, abs=0.01)
    assert [shown_index(picture, 40) for picture in sampled.pictures] == [12, 17, 22, 27]
    assert sampled.seconds == pytest.approx([0.2, 0.7, 1.2, 1.7], abs=0.01)


def test_every_frame_once_when_as_many_are_asked_for(tmp_path: Path) -> None:
    file = write_video(tmp_path / "clip.mp4", frames=8)
    assert [shown_index(picture, 8) for picture in sample_clip(file, Sampling(frames=8)).pictures] == list(
        range(8)
    )


def test_more_frames_than_the_clip_has(tmp_path: Path) -> None:
    file = write_video(tmp_path / "short.mp4", frames=3)
    with pytest.raises(FramesExceedClip, match=r"frames is 4, but short\.mp4 has only 3") as refused:
        sample_clip(file, Sampling(frames=4))
    assert refused.value.code == "frames_exceed_clip"


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "text",
        "truncated_mp4",
        "truncated_mkv",
        "only_headers",
        "without_pictures",
        "overwritten",
        "playlist",
    ],
)
def test_broken_files_are_refused(kind: str, tmp_path: Path) -> None:
    file = write_broken(kind, tmp_path)
    with pytest.raises(ClipUndecodable, match=kind) as refused:
        probe_clip(file)
    assert refused.value.code == "undecodable_clip"


def test_a_declared_number_of_frames_is_compared_with_what_decodes(tmp_path: Path) -> None:
    """Too many are missing frames; too few are a slip of whoever wrote the headers, and harmless."""
    file = write_video(tmp_path / "lying.avi", frames=20)
    declare_frames(file, 200)
    with pytest.raises(
        ClipUndecodable, match=r"lying\.avi .* declares 200 frames, but only 20 decode; record"
    ):
        probe_clip(file)
    declare_frames(file, 3)
    assert probe_clip(file).frames == 20
    pictures = sample_clip(file, Sampling(frames=5)).pictures
    assert [shown_index(picture, 20) for picture in pictures] == [2, 6, 10, 14, 18]


def test_sound_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(ClipWithoutVideo, match=r"sound\.m4a holds no video stream"):
        probe_clip(write_sound(tmp_path / "sound.m4a"))


def test_torch_stays_out() -> None:
    modules = (
        "updates",
        "process",
        "data.video",
        "data.captions",
        "data.validation",
        "data.samples",
        "data.shapes",
        "data.decoders",
        "data.frame_cache",
    )
    imports = ", ".join(f"qlora_engine.{module}" for module in modules)
    code = f"import sys, {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="only Linux tells a thread's policy")
def test_encoding_leaves_no_real_time_thread_behind(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", "libsvtav1")
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
