"""What a subscriber may be spared who wants the present state and not every measurement on the way to it.

Only events whose newest one says all that matters are conflated: a job's progress. Everything else happens
once, and is never dropped. What is left is in the order of the log, so a position still says how far a
subscriber is, and the newest state of every stream is always among what is sent.
"""

from collections.abc import Iterable
from operator import attrgetter

from projections.reader import LogRow
from schemas.events import job

SUPERSEDED = frozenset({job.JobProgressed.TYPE})
"""Types of which a newer event of the same stream replaces an older one."""

INTERVAL_SECONDS = 0.1
"""A conflated subscription is sent something at most so often."""
MOST_BYTES = 2**20
"""What is collected in between; more is sent on before anything else is read."""


class Conflation:
    """Collects events; of those that supersede one another only the newest remains."""

    def __init__(self) -> None:
        self._kept: list[LogRow] = []
        self._newest: dict[tuple[str, str], LogRow] = {}
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether as much is collected as may be."""
        return self._bytes >= MOST_BYTES

    def add(self, rows: Iterable[LogRow]) -> None:
        """Take rows in, in the order of the log."""
        for row in rows:
            if row.type in SUPERSEDED:
                key = row.stream_id, row.type
                older = self._newest.get(key)
                self._bytes += len(row.state) - (0 if older is None else len(older.state))
                self._newest[key] = row
            else:
                self._bytes += len(row.state)
                self._kept.append(row)

    def take(self) -> list[LogRow]:
        """What remains, in the order of the log; nothing is left behind."""
        rows = sorted((*self._kept, *self._newest.values()), key=attrgetter("position"))
        self._kept, self._newest, self._bytes = [], {}, 0
        return rows
