"""Asking for a rebuild: a row that the projections process finds, and its progress for whoever asked."""

from datetime import datetime
from typing import Any, Literal

from psycopg import AsyncConnection
from psycopg.rows import class_row, scalar_row
from pydantic import BaseModel, ConfigDict

from projections.errors import ProjectionError
from projections.listening import REBUILDS_CHANNEL

_SELECT = """
SELECT id, view, reason, requested_by, state, version, generation, position, target, fill, filled, checked,
       error, requested_at, started_at, finished_at
  FROM projections.rebuilds
"""


class TableChecksum(BaseModel):
    """All rows of a table, in any order."""

    model_config = ConfigDict(frozen=True)

    rows: int
    checksum: str
    """Of as many rows with the same values: the same; 16 hexadecimal digits."""


class Checked(BaseModel):
    """What was compared before the swap."""

    model_config = ConfigDict(frozen=True)

    position: int
    """As of which both folds, and the former tables, were compared."""
    streams: int
    """How many were folded a second time, event by event as the running view does it."""
    events: int
    tables: dict[str, TableChecksum]
    differing: tuple[str, ...] | None
    """Tables that held something else before: they were damaged. None where there was nothing to compare, as
    with tables of another version."""


class Rebuild(BaseModel):
    """One rebuild, from its request to its end."""

    model_config = ConfigDict(frozen=True)

    id: int
    view: str
    reason: str
    requested_by: str
    state: Literal["requested", "running", "done", "failed"]
    version: int | None
    """Of the view's code that builds."""
    generation: int | None
    position: int
    """How far the new tables have read; while they are filled in no order of the log, the share that is."""
    target: int
    """The log's head as last seen."""
    fill: int | None
    """The pass over the log that fills the tables; views that are rebuilt together share one."""
    filled: bool
    """From here on the log is followed in its order."""
    checked: Checked | None
    """What the new tables were found to hold before the swap."""
    error: str | None
    requested_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def progress(self) -> float:
        """0 to 1."""
        if self.state == "done":
            return 1.0
        return min(self.position / self.target, 1.0) if self.target else 0.0


async def request_rebuild(
    connection: AsyncConnection[Any],
    view: str,
    *,
    reason: str,
    requested_by: str,
    unless_failed_within_seconds: float = 0.0,
) -> int | None:
    """Ask the projections process to rebuild `view`; an open request for it is joined.

    Returns:
        The request's number, or None when one failed less than `unless_failed_within_seconds` ago.
    """
    async with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute(
            """
            INSERT INTO projections.rebuilds (view, reason, requested_by)
            SELECT %(view)s, %(reason)s, %(requested_by)s
             WHERE NOT EXISTS (
                   SELECT FROM projections.rebuilds
                    WHERE view = %(view)s AND state = 'failed'
                      AND finished_at > now() - make_interval(secs => %(quiet)s))
            ON CONFLICT (view) WHERE state IN ('requested', 'running') DO UPDATE SET view = excluded.view
            RETURNING id
            """,
            {
                "view": view,
                "reason": reason,
                "requested_by": requested_by,
                "quiet": unless_failed_within_seconds,
            },
        )
        identifier = await cursor.fetchone()
    await connection.execute("SELECT pg_notify(%s, %s)", [REBUILDS_CHANNEL, view])
    return None if identifier is None else int(identifier)


async def find_rebuild(connection: AsyncConnection[Any], identifier: int) -> Rebuild:
    """A rebuild as it stands.

    Raises:
        ProjectionError: when there is none of that number.
    """
    async with connection.cursor(row_factory=class_row(Rebuild)) as cursor:
        await cursor.execute(_SELECT + "WHERE id = %s", [identifier])
        found = await cursor.fetchone()
    if found is None:
        raise ProjectionError(f"there is no rebuild {identifier}; list them with `kinora projections`")
    return found


async def recent_rebuilds(connection: AsyncConnection[Any], limit: int = 20) -> tuple[Rebuild, ...]:
    """Newest first."""
    async with connection.cursor(row_factory=class_row(Rebuild)) as cursor:
        await cursor.execute(_SELECT + "ORDER BY id DESC LIMIT %s", [limit])
        return tuple(await cursor.fetchall())


async def open_rebuilds(connection: AsyncConnection[Any]) -> tuple[Rebuild, ...]:
    """What waits or runs, oldest first."""
    async with connection.cursor(row_factory=class_row(Rebuild)) as cursor:
        await cursor.execute(_SELECT + "WHERE state IN ('requested', 'running') ORDER BY id")
        return tuple(await cursor.fetchall())


async def fail_rebuild(connection: AsyncConnection[Any], identifier: int, error: str) -> None:
    await connection.execute(
        "UPDATE projections.rebuilds SET state = 'failed', error = %s, finished_at = now() WHERE id = %s",
        [error[:4000], identifier],
    )
