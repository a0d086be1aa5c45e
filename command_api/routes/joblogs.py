"""A job's log as lines, read from the segments that its agents stored."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from command_api.objects import ObjectStore
from projections.views.logs import LogSegment


class LogLine(BaseModel):
    """One line; agents write JSON objects with at least a message."""

    model_config = ConfigDict(extra="allow")

    line: int
    """Counted over the whole job, from 1."""
    attempt: int
    message: str = ""


async def read_lines(
    store: ObjectStore, segments: Sequence[LogSegment], after_line: int, limit: int
) -> list[LogLine]:
    """At most `limit` lines behind `after_line`; only segments that hold some of them are fetched."""
    lines: list[LogLine] = []
    number = 0
    for segment in segments:
        if number + segment.lines <= after_line:
            number += segment.lines
            continue
        content = (await store.get_bytes(segment.object.key)).decode("utf-8", errors="replace")
        for text in content.split("\n")[: segment.lines]:
            number += 1
            if number > after_line:
                lines.append(LogLine(line=number, attempt=segment.attempt, **_fields(text)))
            if len(lines) == limit:
                return lines
    return lines


def _fields(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return {"message": text}
    if not isinstance(found, dict):
        return {"message": text}
    fields = {name: value for name, value in found.items() if name not in ("line", "attempt")}
    return fields | {"message": str(found.get("message", ""))}
