"""How far each attempt's reports were committed: one row per attempt, written with the report's events."""

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Cursor
from psycopg.rows import DictRow

from command_api.connected import connected
from command_api.domain.errors import Conflict
from command_api.eventlog.errors import LogUnavailable

FIRST = (
    "INSERT INTO kinora_report_cursors (item_id, attempt, sequence) VALUES (%s, %s, 1) ON CONFLICT DO NOTHING"
)
NEXT = "UPDATE kinora_report_cursors SET sequence = %s WHERE item_id = %s AND attempt = %s AND sequence = %s"
SKIP = """
INSERT INTO kinora_report_cursors (item_id, attempt, sequence) VALUES (%s, %s, %s)
ON CONFLICT (item_id, attempt)
DO UPDATE SET sequence = GREATEST(kinora_report_cursors.sequence, EXCLUDED.sequence)
"""
READ = "SELECT sequence FROM kinora_report_cursors WHERE item_id = %s AND attempt = %s"

OUT_OF_ORDER = "report_out_of_order"

Attempt = tuple[str, int]
"""Item and attempt."""


@dataclass(frozen=True, slots=True)
class Advance:
    """The side row of one report: moves the cursor by exactly one, or refuses the whole report.

    So no report can be committed over one that was not, whatever became of it.
    """

    attempt: Attempt
    sequence: int

    def write(self, cursor: Cursor[DictRow]) -> None:
        item_id, number = self.attempt
        if self.sequence == 1:
            cursor.execute(FIRST, (item_id, number))
        else:
            cursor.execute(NEXT, (self.sequence, item_id, number, self.sequence - 1))
        if cursor.rowcount != 1:
            raise Conflict(
                f"report {self.sequence} of {item_id} attempt {number} does not follow the last one;"
                " commit those before it first",
                code=OUT_OF_ORDER,
            )


class Cursors:
    """Reads cursors, and moves them past reports that were refused."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._known: dict[Attempt, int] = {}

    async def last(self, attempt: Attempt) -> int:
        """Sequence of the last committed report; 0 before the first.

        Only the one active inbox writes cursors, so what it committed it need not read again.
        """
        if attempt not in self._known:
            rows = await self._execute(READ, attempt)
            self._known[attempt] = int(rows[0][0]) if rows else 0
        return self._known[attempt]

    async def skip(self, attempt: Attempt, sequence: int) -> None:
        """A report was refused for good: the next one follows it."""
        await self._execute(SKIP, (*attempt, sequence))
        self._known[attempt] = sequence

    def committed(self, attempt: Attempt, sequence: int) -> None:
        self._known[attempt] = sequence

    def forget(self, attempt: Attempt) -> None:
        """A commit's outcome is unknown, or the attempt is over: ask the database next time."""
        self._known.pop(attempt, None)

    async def _execute(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            async with connected(self._conninfo, connect_timeout=3) as connection:
                cursor = await connection.execute(statement, values)
                return await cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError as error:
            raise LogUnavailable(f"report cursors cannot be read or written: {error}") from error
