"""Names the first line of an export that is not as it should be, by the leaf hashes that it should give."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinora.verification.lines import FileUnfit, LeafFile, Line
from schemas import merkle
from schemas.base import Message

How = Literal["altered", "dropped", "inserted", "reordered"]

_TRUNCATED = "the events that the head vouches for end before it"


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


def first_fault(
    lines: Iterable[Line], leaves: LeafFile, limit: int, again: Callable[[], Iterable[Line]]
) -> Finding | None:
    """The first difference between lines and leaves; None when there is none.

    Lines at the end with positions beyond `limit` are let pass. `again` reads the lines anew, to see whether
    what is missing comes later.

    Raises:
        FileUnfit: when the leaf file names another position than is in its hash.
    """
    reading: Iterator[Line] = iter(lines)
    last: Line | None = None
    for index in range(len(leaves.positions)):
        line = next(reading, None)
        expected, leaf = leaves.positions[index], leaves.hash(index)
        if line is None:
            return _dropped(expected, last, _TRUNCATED)
        if line.leaf != leaf:
            behind = next(reading, None)
            return _named(_Place(line, last, behind, expected, leaf), leaves, limit, again)
        if line.position != expected:
            # The hash is under the signed root, and holds the position that the line names.
            raise FileUnfit(
                f"the leaf file names position {expected} where {line.position} is meant; fetch it anew"
            )
        last = line
    for line in reading:
        if line.position is None or line.position <= limit:
            return _inserted(line, "it stands behind the last event that the head vouches for")
        if last is not None and last.position is not None and line.position <= last.position:
            return _inserted(line, "it is there a second time, or out of order")
        last = line
    return None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where lines and leaves differ for the first time."""

    line: Line
    before: Line | None
    behind: Line | None
    expected: int
    leaf: bytes


def _named(at: _Place, leaves: LeafFile, limit: int, again: Callable[[], Iterable[Line]]) -> Finding:
    line, expected = at.line, at.expected
    if line.position == expected:
        return _finding("altered", expected, line, _altered(line))
    if line.position is not None and merkle.hash_event(expected, line.state) == at.leaf:
        changed = f"its position was changed from {expected} to {line.position}"
        return _finding("altered", expected, line, changed)
    stray = line.position is None or not leaves.holds(line.position)
    if stray and at.behind is not None and at.behind.position == expected:
        return _inserted(line, "the log has no such event here")
    if line.position is None:
        return _finding("altered", expected, line, "its line does not begin as the log's lines do")
    if stray and line.position <= limit:
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
        return _dropped(expected, at.before, _TRUNCATED)
    return _dropped(expected, line, f"position {line.position} stands where it should")


def _altered(line: Line) -> str:
    if line.raw.endswith(b"\r"):
        return "its line ends with a carriage return: the file was converted; fetch it again"
    return "its bytes are not those that joined the tree"


def _inserted(line: Line, detail: str) -> Finding:
    return _finding("inserted", line.position, line, detail)


def _dropped(position: int, beside: Line | None, detail: str) -> Finding:
    file, number = (beside.file, beside.number) if beside is not None else (Path(), 0)
    return Finding(
        how="dropped",
        position=position,
        event_id=None,
        file=str(file),
        line=number + (1 if detail is _TRUNCATED else 0),
        detail=detail,
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
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    identifier = found.get("id") if isinstance(found, dict) else None
    return identifier if isinstance(identifier, str) else None
