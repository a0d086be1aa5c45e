"""Names the first line of an export that is not as it should be, by the leaf hashes that it should give."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinora.verification.lines import FileUnfit, LeafFile, Line
from schemas import merkle
from schemas.base import Message

How = Literal["altered", "dropped", "inserted", "reordered"]

_TRUNCATED = "the lines end before it"
_SOURCE = re.compile(rb'\{"position":\d+,"source":"urn:kinora:(log_[0-9a-z]+)"')
_EVENT_ID = re.compile(r"evt_[0-9a-f]{32}\Z")


class Finding(Message):
    """The first event that is not as the signed head says."""

    how: How
    position: int | None
    """Of the event. None for an inserted line that names no position."""
    event_id: str | None
    """As the line says; None where no line is left of the event."""
    file: str
    line: int
    """Where it is, or where it should be."""
    detail: str

    @property
    def what(self) -> str:
        return f"line {self.line}" if self.position is None else f"position {self.position}"


@dataclass(frozen=True, slots=True)
class Stretch:
    """The part of the log that lines are compared with."""

    leaves: LeafFile
    after: int
    """Begins behind this position."""
    until: int
    """Ends with this one."""


def first_fault(
    lines: Iterable[Line], stretch: Stretch, end: Path, again: Callable[[], Iterable[Line]]
) -> tuple[Finding | None, int]:
    """The first difference between lines and leaves, if any, and how many lines stand behind it all.

    `again` reads the lines anew, to see whether what is missing comes later; `end` is the file where they
    would go on.

    Raises:
        FileUnfit: when the leaf file names another position than is in its hash.
    """
    reading: Iterator[Line] = iter(lines)
    last: Line | None = None
    leaves, beyond = stretch.leaves, 0
    for index in range(len(leaves.positions)):
        line = next(reading, None)
        expected, leaf = leaves.positions[index], leaves.hash(index)
        if line is None:
            return _truncated(expected, last, end), 0
        if line.leaf != leaf:
            behind = next(reading, None)
            return _named(_Place(line, last, behind, expected, leaf), stretch, end, again), 0
        if line.position != expected:
            # The hash is under the signed root, and holds the position that the line names.
            raise FileUnfit(
                f"the leaf file names position {expected} where {line.position} is meant; delete it and"
                " fetch it anew"
            )
        last = line
    for line in reading:
        if line.position is None:
            return _inserted(line, _altered(line)), 0
        if line.position <= stretch.until:
            return _inserted(line, "it stands behind the last event of the log up to there"), 0
        if last is not None and last.position is not None and line.position <= last.position:
            return _inserted(line, "it is there a second time, or out of order"), 0
        last = line
        beyond += 1
    return None, beyond


@dataclass(frozen=True, slots=True)
class _Place:
    """Where lines and leaves differ for the first time."""

    line: Line
    before: Line | None
    behind: Line | None
    expected: int
    leaf: bytes


def _named(at: _Place, stretch: Stretch, end: Path, again: Callable[[], Iterable[Line]]) -> Finding:
    line, expected = at.line, at.expected
    if line.position == expected:
        return _finding("altered", expected, line, _altered(line))
    if line.position is not None and merkle.hash_event(expected, line.state) == at.leaf:
        changed = f"its position was changed from {expected} to {line.position}"
        return _finding("altered", expected, line, changed)
    stray = line.position is None or not stretch.leaves.holds(line.position)
    if line.position is not None and line.position <= stretch.after:
        return _inserted(
            line, f"the part to be verified begins behind position {stretch.after}; leave them out"
        )
    if stray and at.behind is not None and at.behind.position == expected:
        return _inserted(line, "the log has no such event here")
    if line.position is None:
        return _finding("altered", expected, line, _altered(line))
    if stray and line.position <= stretch.until:
        return _inserted(line, "the log has no such event")
    if line.position < expected:
        return _inserted(line, "it is there a second time")
    later = next((each for each in again() if each.position == expected), None)
    if later is not None:
        where = (
            f"where it belongs, on line {line.number} of {line.file.name}, stands position {line.position}"
        )
        return _finding("reordered", expected, later, where)
    if stray:
        return _truncated(expected, at.before, end)
    return _dropped(expected, line.file, line.number, f"position {line.position} stands where it should")


def _altered(line: Line) -> str:
    if line.raw.endswith(b"\r"):
        return "its line ends with a carriage return: the file was converted; fetch it again"
    if line.raw.startswith(b"\xef\xbb\xbf"):
        return "its line begins with a byte order mark: the file was converted; fetch it again"
    if line.position is not None:
        return "its bytes are not those that joined the tree"
    if (found := _SOURCE.match(line.raw)) is not None:
        return f"its line is of {found[1].decode()}, and the head is of another log"
    return "its line does not begin as the log's lines do"


def _inserted(line: Line, detail: str) -> Finding:
    return _finding("inserted", line.position, line, detail)


def _truncated(position: int, last: Line | None, end: Path) -> Finding:
    file, number = (last.file, last.number) if last is not None else (end, 0)
    return _dropped(position, file, number + 1, _TRUNCATED)


def _dropped(position: int, file: Path, number: int, detail: str) -> Finding:
    return Finding(
        how="dropped", position=position, event_id=None, file=str(file), line=number, detail=detail
    )


def _finding(how: How, position: int | None, line: Line, detail: str) -> Finding:
    return Finding(
        how=how,
        position=position,
        event_id=_event_id(line.raw),
        file=str(line.file),
        line=line.number,
        detail=detail,
    )


def _event_id(raw: bytes) -> str | None:
    """What the line says, if it is an id: it is printed, and whoever wrote the line may be hostile."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    identifier = found.get("id") if isinstance(found, dict) else None
    return identifier if isinstance(identifier, str) and _EVENT_ID.match(identifier) else None
