"""Reads ``captions.jsonl`` or ``captions.csv`` and says, row by row, what is wrong with it. Free of torch.

JSONL: one object per line. CSV: a header row, commas. Both have ``video`` (a path inside the dataset folder),
``prompt`` and ``response``; further fields are ignored, unless one of these three is missing.
"""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qlora_engine.errors import CaptionsError
from schemas.datasets import Example, Problem, one_turn
from schemas.objects import RelativePath

FIELDS = ("video", "prompt", "response")
NAMES = ("captions.jsonl", "captions.csv")
LONGEST_TEXT = 100_000
MOST_NAMED = 10
"""Rows or fields that one message lists."""
_PATH: TypeAdapter[str] = TypeAdapter(RelativePath)


@dataclass(frozen=True)
class Captions:
    """What a captions file says; rows with a problem are not among the examples."""

    file: str
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]


class _BadRow(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def read_captions(folder: Path) -> Captions:
    """The captions of a dataset folder.

    Raises:
        CaptionsError: there is no captions file, two of them, or it is not readable as a whole.
    """
    present = [name for name in NAMES if (folder / name).is_file()]
    if not present:
        raise CaptionsError(
            "captions.jsonl or captions.csv is missing; put one beside the clips (video, prompt, response)",
            code="missing_captions",
        )
    if len(present) > 1:
        raise CaptionsError(
            "there are both captions.jsonl and captions.csv; keep only one of them", code="two_captions_files"
        )
    name = present[0]
    text = _text(folder / name)
    rows = _jsonl_rows(text) if name.endswith(".jsonl") else _csv_rows(name, text)
    examples: list[Example] = []
    problems: list[Problem] = []
    for row, content in rows:
        try:
            examples.append(_example(folder, name, row, content))
        except _BadRow as problem:
            problems.append(Problem(code=problem.code, where=f"{name}:{row}", message=str(problem)))
    if not examples and not problems:
        raise CaptionsError(f"{name} has no rows; write one per clip", code="no_examples")
    return Captions(name, tuple(examples), tuple(problems))


def repeated_rows(captions: Captions) -> tuple[Problem, ...]:
    """A warning for every example that is there several times, word for word."""
    rows: dict[tuple[str | None, str, str], list[int]] = {}
    for example in captions.examples:
        rows.setdefault((example.clip, example.prompt, example.response), []).append(example.row)
    return tuple(
        Problem(
            code="duplicate_row",
            where=f"{captions.file}:{again[0]}",
            message=f"{_rows(again)} the same video, prompt and response as row {first}, which therefore"
            f" count {1 + len(again)} times; keep one of them",
        )
        for first, *again in rows.values()
        if again
    )


def _rows(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]} has"
    named = ", ".join(map(str, rows[:MOST_NAMED]))
    return f"rows {named}{f' and {len(rows) - MOST_NAMED} more' if len(rows) > MOST_NAMED else ''} have"


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionsError(f"{file.name} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _jsonl_rows(text: str) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for line ends.
    for row, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield row, json.loads(line)
        except json.JSONDecodeError as error:
            yield row, error
        except RecursionError:
            yield row, ValueError("nested too deeply")


def _csv_rows(name: str, text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = reader.fieldnames or ()
    except csv.Error as error:
        raise CaptionsError(
            f"the header of {name} is not CSV ({error}); quote fields with double quotes"
        ) from error
    missing = [field for field in FIELDS if field not in header]
    if missing:
        raise CaptionsError(
            f"the header of {name} is {','.join(header)!r} and lacks {', '.join(missing)};"
            " write video,prompt,response with commas",
            code="bad_captions_header",
        )
    row = 0
    while True:
        row += 1
        try:
            content = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield row, error
            return
        yield row, content


def _example(folder: Path, file: str, row: int, content: Any) -> Example:
    if isinstance(content, Exception):
        raise _BadRow("bad_caption_row", f"the row does not parse ({content}); correct it")
    if not isinstance(content, Mapping):
        raise _BadRow("bad_caption_row", f"the row is {type(content).__name__}, not an object; write {{...}}")
    values = {field: _value(content, field) for field in FIELDS}
    return Example(
        clip=_clip(folder, values["video"]),
        messages=one_turn(values["prompt"], values["response"]),
        file=file,
        row=row,
    )


def _value(content: Mapping[str, Any], field: str) -> str:
    value = content.get(field)
    if field not in content and (unknown := [str(name) for name in content if name not in FIELDS]):
        likely = get_close_matches(field, unknown, n=1) or unknown[:MOST_NAMED]
        raise _BadRow(
            "bad_caption_row",
            f"{field} is missing, and the row has the unknown field {', '.join(map(repr, likely))[:200]};"
            f" rename it if that is the {field}, or add {field}",
        )
    if value is None:
        raise _BadRow("bad_caption_row", f"{field} is missing; add it")
    if not isinstance(value, str):
        raise _BadRow("bad_caption_row", f"{field} is {json.dumps(value)[:80]}, not text; put it in quotes")
    value = value.strip()
    if not value:
        raise _BadRow("bad_caption_row", f"{field} is empty; fill it in or remove the row")
    if len(value) > LONGEST_TEXT:
        raise _BadRow(
            "bad_caption_row",
            f"{field} has {len(value)} characters; at most {LONGEST_TEXT}, shorten it",
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _BadRow(
            "bad_caption_row", f"{field} holds half a character (a lone surrogate); retype it"
        ) from None
    return value


def _clip(folder: Path, video: str) -> str:
    try:
        # Whoever typed the name need not know in which form the file system keeps it.
        path = _PATH.validate_python(unicodedata.normalize("NFC", video.removeprefix("./")))
    except ValidationError:
        raise _BadRow(
            "bad_clip_path",
            f"video {video[:120]!r} must be a relative path with forward slashes inside the dataset folder",
        ) from None
    file = folder / path
    if not file.is_file():
        raise _BadRow("missing_clip", f"video {path!r} is not among the files; upload it or correct the name")
    if not file.resolve().is_relative_to(folder.resolve()):
        raise _BadRow(
            "bad_clip_path", f"video {path!r} is a link that leaves the dataset folder; copy the file in"
        )
    return path
