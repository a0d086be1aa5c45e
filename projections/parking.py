"""Streams that a view could not follow: one row each, with the place and the error where it stopped."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import structlog
from psycopg import AsyncConnection
from psycopg.rows import class_row, scalar_row
from pydantic import BaseModel, ConfigDict

from projections.reader import LogRow

log = structlog.get_logger(__name__)


class ParkedStream(BaseModel):
    """A stream that one view leaves alone until somebody replays it."""

    model_config = ConfigDict(frozen=True)

    view: str
    stream_id: str
    first_position: int
    """The event that failed."""
    last_position: int
    events: int
    """How many events wait, the failed one included."""
    error: str
    parked_at: datetime


async def parked_ids(connection: AsyncConnection[Any], view: str, generation: int) -> frozenset[str]:
    """The streams that this generation of a view leaves alone."""
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute(
            "SELECT stream_id FROM projections.parked_streams WHERE view = %s AND generation = %s",
            [view, generation],
        )
        return frozenset(await cursor.fetchall())


async def parked_streams(
    connection: AsyncConnection[Any],
    view: str | None = None,
    *,
    after: tuple[int, str] = (0, ""),
    limit: int | None = None,
) -> tuple[ParkedStream, ...]:
    """What active views leave alone, oldest first; `after` is (first_position, view) of a page's last row."""
    async with connection.cursor(row_factory=class_row(ParkedStream)) as cursor:
        await cursor.execute(
            """
            SELECT p.view, p.stream_id, p.first_position, p.last_position, p.events, p.error, p.parked_at
              FROM projections.parked_streams p
              JOIN projections.views v ON v.view = p.view AND v.generation = p.generation
             WHERE (%(view)s::text IS NULL OR p.view = %(view)s)
               AND (p.first_position, p.view) > (%(position)s, %(after)s)
             ORDER BY p.first_position, p.view
             LIMIT %(limit)s
            """,
            {"view": view, "position": after[0], "after": after[1], "limit": limit},
        )
        return tuple(await cursor.fetchall())


def described(error: Exception) -> str:
    """What the books keep of an error."""
    return f"{type(error).__name__}: {error}".replace("\x00", "\ufffd")[:4000]


async def park(
    connection: AsyncConnection[Any],
    view: str,
    generation: int,
    row: LogRow,
    error: Exception,
    *,
    last_position: int | None = None,
    events: int = 1,
) -> None:
    """Leave the stream of a failed event alone from here on."""
    log.error(
        "projection.parked", view=view, stream_id=row.stream_id, position=row.position, reason=str(error)
    )
    await connection.execute(
        """
        INSERT INTO projections.parked_streams
               (view, generation, stream_id, first_position, last_position, events, error)
        VALUES (%s, %s, %s, %s, %s, %s, %s)
        """,
        [
            view,
            generation,
            row.stream_id,
            row.position,
            last_position or row.position,
            events,
            described(error),
        ],
    )


async def count(connection: AsyncConnection[Any], view: str, generation: int, rows: Sequence[LogRow]) -> None:
    """Note further events of parked streams."""
    events = Counter(row.stream_id for row in rows)
    last = {row.stream_id: row.position for row in rows}
    for stream_id, number in events.items():
        await connection.execute(
            """
            UPDATE projections.parked_streams SET events = events + %s, last_position = %s
             WHERE view = %s AND generation = %s AND stream_id = %s
            """,
            [number, last[stream_id], view, generation, stream_id],
        )


async def unpark(connection: AsyncConnection[Any], view: str, generation: int, stream_id: str) -> None:
    await connection.execute(
        "DELETE FROM projections.parked_streams WHERE view = %s AND generation = %s AND stream_id = %s",
        [view, generation, stream_id],
    )
