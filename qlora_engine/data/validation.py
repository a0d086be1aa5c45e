"""Judges a dataset: every captions row, and every clip by decoding all of it in a process that may die.

Free of torch.
"""

import os
import queue
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rfc8785

from qlora_engine.data.captions import Captions, read_captions, repeated_rows
from qlora_engine.data.clip_judge import FINDING, Judge, Unusable, Usable
from qlora_engine.errors import CaptionsError
from qlora_engine.updates import DatasetVerdict, Preparing, Update
from schemas.datasets import Clip, DatasetFacts, Manifest, Problem
from schemas.training import DatasetValidationSpec, Hyperparameters

MOST_PROBLEMS = 100
MOST_WARNINGS = 20
MANIFEST_FILE = "manifest.json"
MOST_JUDGES = 4
DECODED_BYTES_PER_SECOND = 1 << 20
"""What even a slow core decodes of a 1080p recording at a low bit rate."""


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
    done = 0
    judges: queue.SimpleQueue[_JudgeProcess] = queue.SimpleQueue()
    count = max(1, min(os.cpu_count() or 1, MOST_JUDGES, len(paths)))
    started = [_JudgeProcess(seconds_per_file) for _ in range(count)]
    for process in started:
        judges.put(process)

    def work(path: str) -> Usable | Unusable:
        process = judges.get()
        try:
            return process.judge(folder / path, path)
        finally:
            judges.put(process)

    findings: list[Usable | Unusable] = []
    emit(Preparing(phase="loading_data", total=len(paths)))
    try:
        with ThreadPoolExecutor(count, thread_name_prefix="judges") as pool:
            for finding in pool.map(work, paths):
                findings.append(finding)
                done += 1
                emit(Preparing(phase="loading_data", done=done, total=len(paths)))
    finally:
        for process in started:
            process.close()
    return findings


@dataclass
class _JudgeProcess:
    """A `clip_judge` that is started when needed and killed when it takes too long."""

    seconds_per_file: float
    _process: subprocess.Popen[bytes] | None = field(default=None)

    def judge(self, file: Path, path: str) -> Usable | Unusable:
        process = self._running()
        assert process.stdin is not None  # noqa: S101 - an invariant
        allowed = self.seconds_allowed(file.stat().st_size)
        try:
            process.stdin.write(
                Judge(file=str(file.absolute()), path=path).model_dump_json().encode() + b"\n"
            )
            process.stdin.flush()
            line = self._line(process, allowed)
        except BrokenPipeError:
            line = b""
        if line is None:
            self.close()
            return Unusable(
                code="clip_too_slow",
                message=f"{file.name} takes longer than {allowed:.3g} s to decode;"
                " shorten it or scale it down",
            )
        if not line:
            self.close()
            return Unusable(
                code="undecodable_clip",
                message=f"{file.name} makes the decoder crash; convert it again",
            )
        return FINDING.validate_json(line)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qlora_engine.data.clip_judge", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process

    def seconds_allowed(self, size_bytes: int) -> float:
        """More for large files: a long recording is decoded as a whole and is no attack."""
        return self.seconds_per_file + size_bytes / DECODED_BYTES_PER_SECOND

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """The answer; empty when the process ended, None after `seconds`."""
        assert process.stdout is not None  # noqa: S101 - an invariant
        deadline = time.monotonic() + seconds
        received = b""
        while not received.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                return b""
            received += piece
        return received

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


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
