"""A dataset is judged by decoding all of it; the manifest is canonical."""

import json
import shutil
from pathlib import Path

import rfc8785

from qlora_engine.data.samples import split
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


def test_a_few_bad_rows_and_clips_are_left_out(tmp_path: Path, recorded: Recorded) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_video(folder / "good.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    videos = ["good.mp4"] * 18 + ["empty.mp4", "gone.mp4"]
    rows = [{"video": video, "prompt": str(row), "response": "bars"} for row, video in enumerate(videos)]
    (folder / "captions.json").write_text(json.dumps(rows), "utf-8")

    verdict = judged(folder, recorded)

    assert verdict.problems == ()
    facts = verdict.facts
    assert facts is not None
    assert (facts.rows, facts.examples, facts.refused_rows, facts.quarantined_clips) == (20, 18, 2, 1)
    assert [(left_out.code, left_out.where) for left_out in facts.refused] == [
        ("missing_clip", "captions.json:20"),
        ("undecodable_clip", "empty.mp4"),
    ]
    assert (facts.file_format, facts.row_format) == ("json", "prompt_response")

    (folder / "captions.json").write_text(json.dumps(rows[1:]), "utf-8")
    assert judged(folder, recorded).facts is None


def test_a_dataset_of_text_alone(tmp_path: Path, recorded: Recorded) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    turns = [("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "e")]
    said = [{"role": role, "content": text} for role, text in turns]
    rows = [{"messages": said[:2]}, {"messages": said}, {"messages": said[:2]}]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")

    verdict = judged(folder, recorded)

    assert verdict.problems == ()
    facts = verdict.facts
    assert facts is not None
    assert (facts.clips, facts.examples, facts.text_examples, facts.smallest_clip_frames) == (0, 3, 3, 0)
    assert (facts.turns, facts.most_turns, facts.characters, facts.split_groups) == (4, 2, 11, 2)
    assert [warning.code for warning in facts.warnings] == ["duplicate_row"]
    assert facts.validation_examples is None


def test_what_is_held_out_is_not_trained_on(tmp_path: Path, recorded: Recorded) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_video(folder / "a.mp4")
    shutil.copy(folder / "a.mp4", folder / "copy.mp4")
    rows: list[dict[str, str]] = [{"prompt": str(row), "response": "x"} for row in range(20)]
    rows[3]["video"] = "a.mp4"
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    held_out = [{"prompt": "7", "response": "x"}, {"prompt": "new", "response": "x", "video": "copy.mp4"}]
    (folder / "captions.validation.json").write_text(json.dumps(held_out), "utf-8")

    verdict = judged(folder, recorded)

    assert verdict.facts is not None
    assert [(leak.code, leak.where) for leak in verdict.facts.refused] == [
        ("split_leak", "captions.jsonl:4"),
        ("split_leak", "captions.jsonl:8"),
    ]
    assert "captions.validation.json:2" in verdict.facts.refused[0].message
    assert (verdict.facts.examples, verdict.facts.validation_examples) == (20, 2)
    assert [warning.code for warning in verdict.facts.warnings] == ["rows_without_video"]
    assert verdict.manifest_file is not None
    manifest = Manifest.model_validate_json(Path(verdict.manifest_file).read_bytes())
    found = split(manifest, 0.5, seed=1)
    assert [example.prompt for example in found.held_out] == ["7", "new"]
    assert len(found.training) == 18

    (folder / "captions.jsonl").write_text("", "utf-8")
    assert judged(folder, recorded).facts is None


def test_validation_rows_alone_cannot_be_trained_on(tmp_path: Path, recorded: Recorded) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "captions.csv").write_text("prompt,response,split\na,b,val\n", "utf-8")
    (problem,) = judged(folder, recorded).problems
    assert problem.code == "no_training_rows"


def test_problems_are_counted_beyond_the_limit(tmp_path: Path, recorded: Recorded) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    captions(folder, *(f"{index}.mp4" for index in range(150)))
    verdict = judged(folder, recorded)
    assert len(verdict.problems) == MOST_PROBLEMS
    assert verdict.problems[-1].code == "more_problems"
    assert verdict.problems[-1].message.startswith("51 ")
