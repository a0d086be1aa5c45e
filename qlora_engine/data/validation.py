"""Judges a dataset: every captions row, and every clip by decoding all of it in a process that may die.

Free of torch.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rfc8785

from qlora_engine.data.captions import Captions, read_captions, repeated_rows, too_many_refused
from qlora_engine.data.decoder import Unusable, Usable
from qlora_engine.data.decoders import MOST_PROCESSES, Decoders
from qlora_engine.errors import CaptionsError
from qlora_engine.updates import DatasetVerdict, Preparing, Update
from schemas.datasets import MAX_MANIFEST_BYTES, Clip, DatasetFacts, Example, Manifest, Problem
from schemas.training import DatasetValidationSpec, Hyperparameters

MOST_PROBLEMS = 100
MOST_WARNINGS = 20
MANIFEST_FILE = "manifest.json"


def validate_dataset(spec: DatasetValidationSpec, emit: Callable[[Update], None]) -> DatasetVerdict:
    """Facts and a manifest file, or every problem found (at most 100).

    Rows and clips that cannot be used are left out and named in the facts; `too_many_refused` says how many
    may be.
    """
    folder = Path(spec.dataset_folder)
    try:
        captions = read_captions(folder)
    except CaptionsError as error:
        return _refused([Problem(code=error.code, where="captions", message=error.message)])
    paths = list(dict.fromkeys(example.clip for example in captions.examples if example.clip))
    findings = dict(zip(paths, judge_clips(folder, paths, spec.seconds_per_file, emit), strict=True))
    clips = tuple(finding.clip for finding in findings.values() if isinstance(finding, Usable))
    quarantined = [
        Problem(code=finding.code, where=path, message=finding.message)
        for path, finding in findings.items()
        if isinstance(finding, Unusable)
    ]
    usable = {clip.path for clip in clips}
    shown = [example for example in captions.examples if example.clip is None or example.clip in usable]
    leaking = leaks(Manifest(clips=clips, examples=tuple(shown)))
    examples = tuple(example for example in shown if example.where not in leaking)
    problems = [*captions.problems, *quarantined, *leaking.values()]
    if too_many_refused(captions.rows - len(examples), captions.rows):
        return _refused(problems)
    if all(example.split == "validation" for example in examples):
        return _refused([*problems, _nothing_to_train_on(captions.files[-1])])
    named = {example.clip for example in examples}
    manifest = Manifest(clips=tuple(clip for clip in clips if clip.path in named), examples=examples)
    content = canonical(manifest)
    if len(content) > MAX_MANIFEST_BYTES:
        return _refused([_too_large(captions.file, len(content))])
    output = Path(spec.output_folder)
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_FILE).write_bytes(content)
    facts = described(manifest).model_copy(
        update={
            "file_format": captions.file_format,
            "row_format": captions.row_format,
            "rows": captions.rows,
            "refused_rows": captions.rows - len(examples),
            "quarantined_clips": len(quarantined),
            "refused": _listed(problems),
            "warnings": (
                *_first(repeated_rows(captions), captions.file),
                *_without_clip(examples, captions.file),
                *_short(manifest.clips),
                *_unused(folder, captions, paths),
            ),
        }
    )
    return DatasetVerdict(facts=facts, manifest_file=str(output / MANIFEST_FILE))


def leaks(manifest: Manifest) -> dict[str, Problem]:
    """By `Example.where`, the training rows whose clip or text the owner also put on the validation side."""
    held_out = {
        group: example
        for example, group in zip(manifest.examples, manifest.groups(), strict=True)
        if example.split == "validation"
    }
    return {
        example.where: Problem(
            code="split_leak",
            where=example.where,
            message=f"the {'clip' if example.clip else 'text'} is also that of validation row"
            f" {held_out[group].where}, and what is trained on cannot be evaluated on; remove one of them",
        )
        for example, group in zip(manifest.examples, manifest.groups(), strict=True)
        if example.split != "validation" and group in held_out
    }


def _nothing_to_train_on(file: str) -> Problem:
    return Problem(
        code="no_training_rows",
        where=file,
        message="every row is for validation, and none to train on; change the split of some",
    )


def _too_large(file: str, size: int) -> Problem:
    return Problem(
        code="captions_too_large",
        where=file,
        message=f"the rows take {size >> 20} MiB as a manifest; at most {MAX_MANIFEST_BYTES >> 20}, split"
        " them into several datasets",
    )


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
    return DatasetVerdict(facts=None, manifest_file=None, problems=_listed(problems))


def _listed(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    kept = tuple(problems[:MOST_PROBLEMS])
    if len(problems) > MOST_PROBLEMS:
        more = Problem(
            code="more_problems",
            where="dataset",
            message=f"{len(problems) - MOST_PROBLEMS + 1} further problems are not listed; start with these",
        )
        kept = (*kept[:-1], more)
    return kept


def _without_clip(examples: Sequence[Example], file: str) -> tuple[Problem, ...]:
    """Where most rows have a clip, one without is more often a mistake than meant."""
    silent = [example for example in examples if example.clip is None]
    if not silent or len(silent) == len(examples):
        return ()
    message = (
        f"{len(silent)} of {len(examples)} rows have no video and are trained on as text"
        f" (first {silent[0].where}); add video if that is not meant"
    )
    return (Problem(code="rows_without_video", where=file, message=message),)


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
    known = {*used, *captions.files}
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


def described(manifest: Manifest) -> DatasetFacts:
    """The figures that follow from the manifest alone."""
    clips, examples = manifest.clips, manifest.examples
    smallest = min(clips, key=lambda clip: clip.frames, default=None)
    turns = [len(example.supervised) for example in examples]
    own_split = any(example.split for example in examples)
    return DatasetFacts(
        clips=len(clips),
        examples=len(examples),
        frames=sum(clip.frames for clip in clips),
        duration_seconds=round(sum(clip.duration_seconds for clip in clips), 6),
        size_bytes=sum(clip.size_bytes for clip in clips),
        smallest_clip_frames=smallest.frames if smallest else 0,
        smallest_clip=smallest.path if smallest else "",
        text_examples=sum(example.clip is None for example in examples),
        turns=sum(turns),
        most_turns=max(turns, default=0),
        characters=sum(len(turn.text) for example in examples for turn in example.messages),
        split_groups=len(set(manifest.groups())),
        validation_examples=sum(each.split == "validation" for each in examples) if own_split else None,
    )
