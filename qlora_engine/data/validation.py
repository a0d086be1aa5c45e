"""Judges a dataset: every captions row, and every clip by decoding all of it in a process that may die.

Free of torch.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rfc8785

from qlora_engine.data.captions import Captions, read_captions, repeated_rows
from qlora_engine.data.decoder import Unusable, Usable
from qlora_engine.data.decoders import MOST_PROCESSES, Decoders
from qlora_engine.errors import CaptionsError
from qlora_engine.updates import DatasetVerdict, Preparing, Update
from schemas.datasets import Clip, DatasetFacts, Manifest, Problem
from schemas.training import DatasetValidationSpec, Hyperparameters

MOST_PROBLEMS = 100
MOST_WARNINGS = 20
MANIFEST_FILE = "manifest.json"


def validate_dataset(spec: DatasetValidationSpec, emit: Callable[[Update], None]) -> DatasetVerdict:
    """Facts and a manifest file, or every problem found (at most 100)."""
    folder = Path(spec.dataset_folder)
    try:
        captions = read_captions(folder)
    except CaptionsError as error:
        return _refused([Problem(code=error.code, where="captions", message=error.message)])
    paths = list(dict.fromkeys(example.clip for example in captions.examples if example.clip))
    findings = judge_clips(folder, paths, spec.seconds_per_file, emit)
    clips = [finding.clip for finding in findings if isinstance(finding, Usable)]
    problems = [
        *captions.problems,
        *(
            Problem(code=finding.code, where=path, message=finding.message)
            for path, finding in zip(paths, findings, strict=True)
            if isinstance(finding, Unusable)
        ),
    ]
    if problems:
        return _refused(problems)
    manifest = Manifest(clips=tuple(clips), examples=captions.examples)
    output = Path(spec.output_folder)
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_FILE).write_bytes(canonical(manifest))
    warnings = (
        *_first(repeated_rows(captions), captions.file),
        *_short(clips),
        *_unused(folder, captions, paths),
    )
    return DatasetVerdict(facts=_facts(manifest, warnings), manifest_file=str(output / MANIFEST_FILE))


def canonical(manifest: Manifest) -> bytes:
    """RFC 8785 JSON: the same manifest has the same bytes everywhere."""
    return rfc8785.dumps(manifest.model_dump(mode="json"))


def judge_clips(
    folder: Path, paths: Sequence[str], seconds_per_file: float, emit: Callable[[Update], None]
) -> list[Usable | Unusable]:
    """What each clip holds, in order; several are decoded at a time."""
    findings: list[Usable | Unusable] = []
    emit(Preparing(phase="loading_data", total=len(paths)))
    count = max(1, min(os.cpu_count() or 1, MOST_PROCESSES, len(paths)))
    with Decoders(count, seconds_per_file) as decoders, ThreadPoolExecutor(count) as pool:
        for finding in pool.map(lambda path: decoders.judge(folder / path, path), paths):
            findings.append(finding)
            emit(Preparing(phase="loading_data", done=len(findings), total=len(paths)))
    return findings


def _refused(problems: Sequence[Problem]) -> DatasetVerdict:
    kept = tuple(problems[:MOST_PROBLEMS])
    if len(problems) > MOST_PROBLEMS:
        more = Problem(
            code="more_problems",
            where="dataset",
            message=f"{len(problems) - MOST_PROBLEMS + 1} further problems are not listed; start with these",
        )
        kept = (*kept[:-1], more)
    return DatasetVerdict(facts=None, manifest_file=None, problems=kept)


def _first(repeated: tuple[Problem, ...], file: str) -> tuple[Problem, ...]:
    if len(repeated) <= MOST_WARNINGS:
        return repeated
    rest = f"{len(repeated) - MOST_WARNINGS} further rows are there several times, too"
    return (*repeated[:MOST_WARNINGS], Problem(code="duplicate_row", where=file, message=rest))


def _short(clips: Sequence[Clip]) -> tuple[Problem, ...]:
    """Clips that a job with the usual number of frames would be refused for."""
    usual = int(Hyperparameters.model_fields["frames"].default)
    short = sorted((clip for clip in clips if clip.frames < usual), key=lambda clip: clip.frames)
    listed = [
        Problem(
            code="short_clip",
            where=clip.path,
            message=f"the clip has {clip.frames} frame{'s' * (clip.frames > 1)}, and a job takes {usual} of"
            f" each unless it asks for less: set frames to {clip.frames}, or leave the clip out",
        )
        for clip in short[:MOST_WARNINGS]
    ]
    if len(short) > MOST_WARNINGS:
        rest = f"{len(short) - MOST_WARNINGS} further clips have fewer than {usual} frames"
        listed.append(Problem(code="short_clip", where="dataset", message=rest))
    return tuple(listed)


def _unused(folder: Path, captions: Captions, used: Sequence[str]) -> tuple[Problem, ...]:
    known = {*used, captions.file}
    present = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() or file.is_symlink()
    )
    unused = [path for path in present if path not in known]
    listed = [
        Problem(code="unused_file", where=path, message="no caption names this file; it is not used")
        for path in unused[:MOST_WARNINGS]
    ]
    if len(unused) > MOST_WARNINGS:
        rest = f"{len(unused) - MOST_WARNINGS} further files are not named by a caption"
        listed.append(Problem(code="unused_file", where="dataset", message=rest))
    return tuple(listed)


def _facts(manifest: Manifest, warnings: tuple[Problem, ...]) -> DatasetFacts:
    clips: tuple[Clip, ...] = manifest.clips
    smallest = min(clips, key=lambda clip: clip.frames)
    totals: dict[str, Any] = {
        "frames": sum(clip.frames for clip in clips),
        "duration_seconds": round(sum(clip.duration_seconds for clip in clips), 6),
        "size_bytes": sum(clip.size_bytes for clip in clips),
        "smallest_clip_frames": smallest.frames,
        "smallest_clip": smallest.path,
    }
    return DatasetFacts(clips=len(clips), examples=len(manifest.examples), warnings=warnings, **totals)
