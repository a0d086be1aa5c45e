"""The frames that people are shown are the frames that the tensors hold."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from qlora_engine.data.collate import Collator
from qlora_engine.data.decoders import Decoders
from qlora_engine.data.frame_cache import FrameCache
from qlora_engine.data.frames import Frames, frame_digests
from qlora_engine.data.pictures import Size, digest
from qlora_engine.data.sampling import Sampling
from qlora_engine.data.show import LABEL, main, pictures_across, place, png, sheet, show
from qlora_engine.models.loading import load_model
from qlora_engine.training.attempt import read_manifest
from tests.engine.videos import decoded, write_broken, write_video


@pytest.mark.parametrize("sampling", [Sampling(frames=3), Sampling(frames_per_second=2, max_frames=3)])
def test_a_batch_holds_what_is_shown(
    sampling: Sampling,
    tiny: Path,
    clips: Path,
    manifest_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded = load_model(str(tiny), torch.device("cpu"))
    assert loaded.vision is not None
    manifest = read_manifest(manifest_file)
    examples = manifest.examples[:3]
    cache = FrameCache(tmp_path / "cache", 1 << 30)
    with Decoders(2) as decoders:
        for turn in ("decoded", "from disk"):
            with Frames(
                clips, manifest.clips, sampling, loaded.vision, decode=decoders.sample, cache=cache
            ) as frames:
                batch = Collator(loaded.prompts, frames, loaded.context_tokens).batch(examples)
            assert frames.decoded == (3 if turn == "decoded" else 0)
            (row,) = batch.clips
            for example, clip in zip(examples, row, strict=True):
                size = str(loaded.vision.image_size)
                asked = [f"--frames={sampling.frames}", f"--min-frames={sampling.min_frames}"]
                if sampling.frames_per_second is not None:
                    asked += [f"--frames-per-second={sampling.frames_per_second}", "--max-frames=3"]
                assert main([str(clips / str(example.clip)), "--size", size, "--json", *asked]) == 0
                said = json.loads(capsys.readouterr().out)
                assert [frame["sha256"] for frame in said["frames"]] == list(frame_digests(clip.pixels))
                assert [frame["seconds"] for frame in said["frames"]] == list(clip.moments.seconds)


def test_what_is_said_of_the_source_is_a_full_decode(tmp_path: Path) -> None:
    file = write_video(tmp_path / "clip.mp4", frames=20)
    shown = show(file, Sampling(frames=4), Size(16, 16))
    whole = decoded(file)
    assert [frame.source_sha256 for frame in shown.frames] == [digest(whole[at]) for at in (2, 7, 12, 17)]


def test_the_sheet_holds_the_very_pictures(tmp_path: Path) -> None:
    file = write_video(tmp_path / "clip.mp4", frames=20)
    target = tmp_path / "sheet.png"
    assert main([str(file), "--frames", "5", "--size", "500", "--sheet", str(target)]) == 0
    with av.open(str(target)) as opened:
        picture = next(opened.decode(video=0)).to_ndarray(format="rgb24")
    shown, size = show(file, Sampling(frames=5), Size(500, 500)), Size(500, 500)
    across = pictures_across(size, 5)
    assert across == 4
    for number, frame in enumerate(shown.frames):
        left, top = place(number, size, across)
        assert digest(picture[top : top + 500, left : left + 500]) == frame.sha256
        beneath = picture[top + 500 : top + 500 + LABEL - 1, left : left + 60]
        assert beneath.max() > 200  # its time
    assert target.read_bytes() == png(sheet(shown))
    assert np.array_equal(picture, sheet(shown))


def test_a_clip_that_cannot_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_broken("text", tmp_path))]) == 1
    assert "text.mp4 cannot be decoded" in capsys.readouterr().err
    assert main([str(write_video(tmp_path / "short.mp4", frames=3))]) == 1
    assert "frames is 4, but short.mp4 has only 3" in capsys.readouterr().err
