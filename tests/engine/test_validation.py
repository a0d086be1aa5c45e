"""A dataset is judged by decoding all of it; the manifest is canonical."""

from pathlib import Path

import rfc8785

from qlora_engine.data.validation import MOST_PROBLEMS, MOST_WARNINGS, validate_dataset
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
