"""Reads a dataset's captions file and says, row by row, what is wrong with it. Free of torch.

`rows` knows the file formats, `conversations` the shapes of a row; here both meet the clips' folder.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from qlora_engine.data.conversations import MARKS, MOST_NAMED, Conversation, conversation, recognised
from qlora_engine.data.rows import Row, file_format, read_rows
from qlora_engine.errors import CaptionsError, RowRefused
from schemas.datasets import (
    CAPTIONS_NAMES,
    VALIDATION_NAMES,
    Example,
    FileFormat,
    Problem,
    RowFormat,
    Turn,
)
from schemas.objects import RelativePath

MOST_REFUSED = 0.1
"""Share of rows that may be left out; with more of them, something is wrong with the whole."""
_PATH: TypeAdapter[str] = TypeAdapter(RelativePath)


@dataclass(frozen=True)
class Captions:
    """What the captions say; rows with a problem are not among the examples."""

    file: str
    files: tuple[str, ...]
    """`file`, and the validation rows' own file if there is one."""
    file_format: FileFormat
    row_format: RowFormat | None
    """None when no row could be read."""
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]
    """One per refused row."""

    @property
    def rows(self) -> int:
        return len(self.examples) + len(self.problems)


def too_many_refused(refused: int, rows: int) -> bool:
    """Whether so few of the rows remain that the dataset is not what its owner meant."""
    return refused >= rows or refused > MOST_REFUSED * rows


def read_captions(folder: Path) -> Captions:
    """The captions of a dataset folder.

    Raises:
        CaptionsError: there is no captions file, two of them, or one is not readable as a whole.
    """
    name = _only(folder, CAPTIONS_NAMES)
    if name is None:
        raise CaptionsError(
            f"{', '.join(CAPTIONS_NAMES[:-1])} or {CAPTIONS_NAMES[-1]} is missing; put one beside the clips"
            f" (video, prompt, response){_misnamed(folder)}",
            code="missing_captions",
        )
    shape, examples, problems = _read(folder, name)
    held_out = _only(folder, VALIDATION_NAMES)
    if held_out is not None:
        _, more, worse = _read(folder, held_out)
        examples, problems = examples + more, problems + worse
    return Captions(
        file=name,
        files=(name,) if held_out is None else (name, held_out),
        file_format=file_format(folder / name),
        row_format=shape,
        examples=tuple(examples),
        problems=tuple(problems),
    )


def _only(folder: Path, names: Sequence[str]) -> str | None:
    present = [name for name in names if (folder / name).is_file()]
    if len(present) > 1:
        raise CaptionsError(
            f"there are {' and '.join(present)}; keep only one of them", code="two_captions_files"
        )
    return present[0] if present else None


def _misnamed(folder: Path) -> str:
    suffixes = {Path(name).suffix for name in CAPTIONS_NAMES}
    likely = sorted(file.name for file in folder.glob("*.*") if file.suffix.lower() in suffixes)
    if not likely:
        return ""
    return f"; if {likely[0][:120]!r} is meant, name it captions{Path(likely[0]).suffix.lower()}"


def _read(folder: Path, name: str) -> tuple[RowFormat | None, list[Example], list[Problem]]:
    rows = read_rows(folder / name)
    if not rows:
        raise CaptionsError(f"{name} has no rows; write one per clip", code="no_examples")
    shape = recognised(content for _, content in rows)
    if shape is None and any(isinstance(content, dict) for _, content in rows):
        raise _unknown_shape(name, rows)
    examples: list[Example] = []
    problems: list[Problem] = []
    for number, content in rows:
        try:
            # Without any shape no row is an object, and each is refused for that.
            said = conversation(shape or "prompt_response", content)
            examples.append(_example(folder, name, number, said))
        except RowRefused as refused:
            problems.append(Problem(code=refused.code, where=f"{name}:{number}", message=refused.message))
    return shape, examples, problems


def _unknown_shape(name: str, rows: Sequence[Row]) -> CaptionsError:
    number, fields = next((number, content) for number, content in rows if isinstance(content, dict))
    named = ",".join(str(field) for field in fields)[:200]
    shapes = "; ".join(", ".join(marks) for marks in MARKS.values())
    return CaptionsError(
        f"{name} row {number} has the fields {named!r}, which fit no known kind of row; write one of:"
        f" {shapes}"
        f"{' (separate fields with commas)' * (';' in named)}",
        code="bad_captions_header",
    )


def _example(folder: Path, file: str, row: int, said: Conversation) -> Example:
    split = said.split
    if file in VALIDATION_NAMES:
        if split == "training":
            raise RowRefused(
                f"split is training, but {file} holds validation rows; move the row or the split"
            )
        split = "validation"
    clip = None if said.video is None else _clip(folder, said.video)
    return Example(clip=clip, messages=said.turns, file=file, row=row, split=split)


def _clip(folder: Path, video: str) -> str:
    try:
        # Whoever typed the name need not know in which form the file system keeps it.
        path = _PATH.validate_python(unicodedata.normalize("NFC", video.removeprefix("./")))
    except ValidationError:
        raise RowRefused(
            f"video {video[:120]!r} must be a relative path with forward slashes inside the dataset folder",
            code="bad_clip_path",
        ) from None
    file = folder / path
    if not file.is_file():
        raise RowRefused(
            f"video {path!r} is not among the files; upload it or correct the name", code="missing_clip"
        )
    if not file.resolve().is_relative_to(folder.resolve()):
        raise RowRefused(
            f"video {path!r} is a link that leaves the dataset folder; copy the file in", code="bad_clip_path"
        )
    return path


def repeated_rows(captions: Captions) -> tuple[Problem, ...]:
    """A warning for every example that is there several times, word for word."""
    seen: dict[tuple[str, str | None, tuple[Turn, ...]], list[Example]] = {}
    for example in captions.examples:
        seen.setdefault((example.file, example.clip, example.messages), []).append(example)
    return tuple(
        Problem(
            code="duplicate_row",
            where=again[0].where,
            message=f"{_rows([example.row for example in again])} {_same(first)} as row {first.row}, which"
            f" therefore count {1 + len(again)} times; keep one of them",
        )
        for first, *again in seen.values()
        if again
    )


def _same(example: Example) -> str:
    said = "prompt and response" if len(example.messages) == 2 else "conversation"
    if example.clip is None:
        return f"the same {said}"
    return f"the same video, {said}" if said.startswith("prompt") else f"the same video and {said}"


def _rows(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]} has"
    named = ", ".join(map(str, rows[:MOST_NAMED]))
    return f"rows {named}{f' and {len(rows) - MOST_NAMED} more' if len(rows) > MOST_NAMED else ''} have"
