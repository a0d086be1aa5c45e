"""One attempt's reports on disk until the control plane has them.

The file is append-only: a line per report, synced before the report is sent, and a line per
acknowledgement, not synced, since forgetting one only sends a report again and repeats are harmless.

What a restarted agent does with the spool it finds (`recovery`): its predecessor's engine is dead, so the
attempt cannot go on. But reports that were written and not acknowledged are still true, and the numbers
must have no holes, since the inbox waits for a missing one. So the rest is sent first, a stored
checkpoint among it, and then, unless the attempt had already ended, `Released` with the next number:
the job queues again at once instead of waiting for the lease to expire.
"""

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import structlog
from pydantic import Field, ValidationError

from schemas.base import Message
from schemas.work import (
    AdapterUploaded,
    DatasetJudged,
    Declined,
    Failed,
    ModelJudged,
    Released,
    Report,
    ReportBody,
    Stopped,
)

log = structlog.get_logger()


class _Acknowledged(Message):
    acknowledged: int = Field(ge=1)


def ends_attempt(body: ReportBody) -> bool:
    """Whether nothing may follow this report."""
    match body:
        case Declined() | Released() | Stopped() | Failed() | DatasetJudged() | ModelJudged():
            return True
        case AdapterUploaded():
            return not body.partial
        case _:
            return False


class Spool:
    """The reports of one attempt, in order; synchronous."""

    def __init__(self, path: Path, reports: Iterable[Report] = (), last_sequence: int = 0) -> None:
        self.path = path
        self.last_sequence = last_sequence
        self.ended = False
        self._unacknowledged: list[Report] = []
        for report in reports:
            self.add(report)
        self._torn = path.exists()  # perhaps: an empty line more does no harm
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._open = True
        if not self._torn:
            _sync_folder(path.parent)

    @property
    def waiting(self) -> int:
        """How many reports are not known to be stored."""
        return len(self._unacknowledged)

    @classmethod
    def load(cls, path: Path) -> Self:
        """What is left in the file of an earlier run. A torn last line was never sent and is dropped."""
        reports: list[Report] = []
        acknowledged = 0
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                if line.startswith(b'{"acknowledged"'):
                    acknowledged = max(acknowledged, _Acknowledged.model_validate_json(line).acknowledged)
                elif line:
                    reports.append(Report.model_validate_json(line))
            except ValidationError:
                log.warning("spool_line_dropped", file=path.name, line=number)
        spool = cls(path, reports, acknowledged)
        spool._forget(acknowledged)
        return spool

    def write(self, report: Report) -> None:
        """Put `report` on disk, where it is when this returns; may run in a thread. `add` follows.

        Raises:
            OSError: the disk is full or gone.
        """
        self._append(report.model_dump_json().encode())
        os.fsync(self._file)

    def add(self, report: Report) -> None:
        """Hold `report` until it is acknowledged."""
        self._unacknowledged.append(report)
        self.last_sequence = max(self.last_sequence, report.sequence)
        self.ended = self.ended or ends_attempt(report.body)

    def first_unacknowledged(self) -> Report | None:
        return self._unacknowledged[0] if self._unacknowledged else None

    def acknowledge(self, sequence: int) -> None:
        """Forget every report up to `sequence`."""
        self._forget(sequence)
        try:
            self._append(_Acknowledged(acknowledged=sequence).model_dump_json().encode())
        except OSError as error:
            log.warning("spool_unwritable", file=self.path.name, error=str(error))

    def close(self) -> None:
        if self._open:
            os.close(self._file)
            self._open = False

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def _forget(self, sequence: int) -> None:
        self._unacknowledged = [report for report in self._unacknowledged if report.sequence > sequence]

    def _append(self, line: bytes) -> None:
        if not self._open:  # its number may belong to another file by now
            raise OSError(errno.EBADF, "the spool is closed", str(self.path))
        # One write per line: report and acknowledgement may be written by two threads at once.
        data = (b"\n" if self._torn else b"") + line + b"\n"
        self._torn = True
        if os.write(self._file, data) < len(data):
            raise OSError(errno.ENOSPC, "the disk took only part of a spool line", str(self.path))
        self._torn = False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
