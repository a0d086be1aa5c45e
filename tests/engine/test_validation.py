"""A dataset is judged by decoding all of it; the manifest is canonical; hostile files cannot hang it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import rfc8785

from qlora_engine.data.validation import MOST_PROBLEMS, MOST_WARNINGS, _JudgeProcess, validate_dataset
from qlora_engine.updates import DatasetVerdict
from schemas.datasets import Manifest
from schemas.training import DatasetValidationSpec
from tests.engine.conftest import Recorded
from tests.engine.videos import write_sound, write_video


def captions(folder: Path, *videos: str) -> None:
    rows = [f'{{"video": "{video}", "prompt": "?", "response": "bars"}}' for video in videos]
    (folder / "captions.jsonl").write_text("\n".join(rows), "utf-8")


def judged(folder: Path, recorded: Recorded, seconds: float = 60) -> DatasetVerdict:
    spec = DatasetValidationSpec(
        dataset_folder=str(folder), output_folder=str(folder.parent / "judged"), seconds_per_file=seconds
    )
    return validate_dataset(spec, recorded)


def test_a_good_dataset(tmp_path: Path, recorded: Recorded) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_video(folder / "a.mp4", frames=12)
    write_video(folder / "b.webm", "libvpx-vp9", frames=20, audio=True)
    (folder / "notes.txt").write_text("hello", "utf-8")
    captions(folder, "b.webm", "a.mp4", "b.webm")

    verdict = judged(folder, recorded)

    assert verdict.problems == ()
    assert verdict.facts is not None
    facts = verdict.facts
    assert (facts.clips, facts.examples, facts.frames, facts.smallest_clip_frames) == (2, 3, 32, 12)
    assert [(warning.code, warning.where) for warning in facts.warnings] == [
        ("duplicate_row", "captions.jsonl:3"),
        ("unused_file", "notes.txt"),
    ]
    assert verdict.manifest_file is not None
    content = Path(verdict.manifest_file).read_bytes()
    manifest = Manifest.model_validate_json(content)
    assert [clip.path for clip in manifest.clips] == ["b.webm", "a.mp4"]
    assert [example.clip for example in manifest.examples] == ["b.webm", "a.mp4", "b.webm"]
    assert rfc8785.dumps(manifest.model_dump(mode="json")) == content
    assert [(update.done, update.total) for update in recorded.of("preparing")] == [(0, 2), (1, 2), (2, 2)]


def test_warnings_of_repeated_rows_are_bounded(tmp_path: Path, recorded: Recorded) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_video(folder / "a.mp4", frames=12)
    rows = [f'{{"video": "a.mp4", "prompt": "?", "response": "bars {number}"}}\n' for number in range(30)]
    (folder / "captions.jsonl").write_text("".join(rows * 2), "utf-8")

    facts = judged(folder, recorded).facts

    assert facts is not None
    assert len(facts.warnings) == MOST_WARNINGS + 1
    assert facts.warnings[-1].message.startswith("10 further rows")


def test_every_problem_is_listed_at_once(tmp_path: Path, recorded: Recorded) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_video(folder / "good.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    write_sound(folder / "sound.m4a")
    captions(folder, "good.mp4", "empty.mp4", "sound.m4a", "gone.mp4")

    verdict = judged(folder, recorded)

    assert verdict.facts is None
    assert verdict.manifest_file is None
    assert {(problem.code, problem.where) for problem in verdict.problems} == {
        ("missing_clip", "captions.jsonl:4"),
        ("undecodable_clip", "empty.mp4"),
        ("no_video_stream", "sound.m4a"),
    }


def test_problems_are_counted_beyond_the_limit(tmp_path: Path, recorded: Recorded) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    captions(folder, *(f"{index}.mp4" for index in range(150)))
    verdict = judged(folder, recorded)
    assert len(verdict.problems) == MOST_PROBLEMS
    assert verdict.problems[-1].code == "more_problems"
    assert verdict.problems[-1].message.startswith("51 ")


def test_a_decoder_that_hangs_is_killed_at_the_deadline(tmp_path: Path) -> None:
    file = write_video(tmp_path / "good.mp4")
    process = _JudgeProcess(30)
    try:
        assert process.judge(file, "good.mp4").kind == "usable"
        assert process._process is not None
        hanging = psutil.Process(process._process.pid)
        hanging.suspend()
        process.seconds_per_file = 0.5
        slow = process.judge(file, "good.mp4")
        assert (slow.kind, slow.code) == ("unusable", "clip_too_slow")  # type: ignore[union-attr]
        assert not hanging.is_running()
        process.seconds_per_file = 30
        assert process.judge(file, "good.mp4").kind == "usable"
    finally:
        process.close()


def test_a_long_recording_may_take_longer_than_a_short_clip() -> None:
    process = _JudgeProcess(60)
    assert process.seconds_allowed(20_000) == pytest.approx(60, abs=0.1)
    # Ten minutes of 1080p, which one core decodes in about two and a half, have 200 MB at least.
    assert process.seconds_allowed(200 * 10**6) > 240


def test_a_decoder_that_dies_is_replaced(tmp_path: Path) -> None:
    file = write_video(tmp_path / "good.mp4")
    process = _JudgeProcess(30)
    try:
        assert process.judge(file, "good.mp4").kind == "usable"
        assert process._process is not None
        os.kill(process._process.pid, signal.SIGSEGV)
        process._process.wait()
        died = process.judge(file, "good.mp4")
        assert (died.kind, died.code) == ("unusable", "undecodable_clip")  # type: ignore[union-attr]
        assert process.judge(file, "good.mp4").kind == "usable"
    finally:
        process.close()


def test_decoders_do_not_outlive_their_parent(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from qlora_engine.data.validation import _JudgeProcess;"
        "p = _JudgeProcess(30); p.judge(Path(sys.argv[1]), 'a');"
        "print(p._process.pid, flush=True); time.sleep(60)"
    )
    file = write_video(tmp_path / "good.mp4")
    parent = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    decoder = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    psutil.wait_procs([decoder], timeout=10)
    assert not decoder.is_running() or decoder.status() == psutil.STATUS_ZOMBIE
