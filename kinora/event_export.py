"""Downloads the organization's events to a file, a line each, and goes on with a file that is there."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kinora.client import ApiError, Client, Unreachable
from schemas.envelope import stored_bytes
from schemas.errors import KinoraError

_BEGINNING = b'{"position":'
_TAIL_BYTES = 2**20
"""More than the longest line: an event has at most 256 KiB."""

Report = Callable[[str, int, int], None]
"""Told (doing, done, total) in positions."""


class NotAnExport(KinoraError):
    """A file that does not hold exported events, or not those that are asked for."""

    code = "not_an_export"


class ExportIncomplete(KinoraError):
    """The service sent fewer events than it said."""

    code = "export_incomplete"
    retryable = True


@dataclass(frozen=True, slots=True)
class Begun:
    """What a file holds already."""

    log_id: str | None = None
    first: int | None = None
    last: int | None = None
    whole_bytes: int = 0
    """Up to the end of the last whole line."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What the file holds in the end."""

    log_id: str
    first: int | None
    last: int | None
    lines: int
    """That were added."""
    until: int


def begun(file: Path) -> Begun:
    """How far the file has come. A line that broke off does not count.

    Raises:
        NotAnExport: its first or last whole line is no event.
    """
    if not file.exists() or not file.stat().st_size:
        return Begun()
    with file.open("rb") as lines:
        first_line = lines.readline(_TAIL_BYTES)
        lines.seek(0, os.SEEK_END)
        size = lines.tell()
        begin = max(0, size - _TAIL_BYTES)
        lines.seek(begin)
        tail = lines.read()
    end = tail.rfind(b"\n")
    # Nothing is cut off that is not the beginning of an event.
    rest = tail[end + 1 :][: len(_BEGINNING)]
    if rest != _BEGINNING[: len(rest)] or (end < 0 and begin):
        raise NotAnExport(f"{file} holds something else than events, a line each; name another file")
    if end < 0:
        return Begun()
    last_line = tail[tail.rfind(b"\n", 0, end) + 1 : end]
    try:
        first, log_id, _ = stored_bytes(first_line.rstrip(b"\n"))
        last, last_log_id, _ = stored_bytes(last_line)
    except ValueError as error:
        raise NotAnExport(f"{file} holds something else than events ({error}); name another file") from None
    if log_id != last_log_id:
        raise NotAnExport(f"{file} begins with events of {log_id} and ends with some of {last_log_id}")
    return Begun(log_id, first, last, begin + end + 1)


def export(
    client: Client,
    file: Path,
    *,
    after: int | None,
    until: int | None,
    report: Report,
    patience_seconds: float = 60.0,
) -> Exported:
    """Download events behind `after` up to `until`, by default all, or what the file lacks of them.

    Raises:
        NotAnExport: the file holds other events than those asked for.
        ApiError: the service refuses; 409 when the file is of another log.
        Unreachable: nothing came for `patience_seconds`; what came before is in the file.
        ExportIncomplete: the service ended before the position that it named.
    """
    held = begun(file)
    if held.first is not None and held.last is not None:
        if after is not None and held.first <= after:
            raise NotAnExport(
                f"{file} begins at position {held.first}, not behind {after}; name another file"
            )
        if until is not None and held.last > until:
            raise NotAnExport(f"{file} goes on to position {held.last}, beyond {until}; name another file")
    with file.open("ab") as out:
        out.truncate(held.whole_bytes)
        position, log_id, lines = held.last or after or 0, held.log_id, 0
        failing_since: float | None = None
        while True:
            try:
                with client.download("/events/export", after=position, until=until, log_id=log_id) as answer:
                    log_id = answer.headers["X-Kinora-Log-Id"]
                    until = int(answer.headers["X-Kinora-Until"])
                    last = int(answer.headers["X-Kinora-Last-Position"])
                    kept = b""
                    for chunk in answer.iter_raw(2**18):
                        whole, newline, kept = (kept + chunk).rpartition(b"\n")
                        if newline:
                            out.write(whole + newline)
                            lines += whole.count(b"\n") + 1
                            position = stored_bytes(whole[whole.rfind(b"\n") + 1 :])[0]
                            report("events", position, last)
                            failing_since = None
                if position < last:
                    raise ExportIncomplete(
                        f"{file} ends at position {position}, but there are events up to {last};"
                        " run the same command again"
                    )
                break
            except (Unreachable, ApiError) as error:
                out.flush()
                if isinstance(error, ApiError) and error.status not in (429, 502, 503, 504):
                    raise
                now = time.monotonic()
                failing_since = failing_since or now
                if now - failing_since > patience_seconds:
                    raise
                time.sleep(1.0)
        out.flush()
        os.fsync(out.fileno())
    first = held.first if held.first is not None else begun(file).first
    return Exported(log_id, first, position if first is not None else None, lines, until)
