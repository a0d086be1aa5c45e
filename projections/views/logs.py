"""Which objects hold a job's log and its full-resolution series."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import class_row

from projections.documents import ViewModel
from projections.view import Census, Row, Table
from schemas.envelope import Recorded
from schemas.events import job as events
from schemas.objects import StoredObject

Content = Literal["log", "series"]


class LogSegment(ViewModel):
    """One stored piece."""

    job_id: str
    attempt: int
    segment: int
    content: Content
    lines: int
    object: StoredObject
    stored_at: datetime


class LogSegments:
    name = "logs"
    version = 1
    types: tuple[str, ...] | None = (events.LogSegmentStored.TYPE,)
    census: Census = ()
    tables: tuple[Table, ...] = (
        Table(
            name="segments",
            stream="job_id",
            columns=(
                "job_id text NOT NULL",
                "organization_id text NOT NULL",
                "attempt integer NOT NULL",
                "content text NOT NULL",
                "segment integer NOT NULL",
                "lines integer NOT NULL",
                "object jsonb NOT NULL",
                "stored_at timestamptz NOT NULL",
            ),
            key="job_id, content, attempt, segment",
        ),
    )

    def begin(self) -> "SegmentFold":
        return SegmentFold()

    async def apply(self, cursor: AsyncCursor[Any], events_of_page: Sequence[Recorded]) -> None:
        rows = [
            _row(each, each.event)
            for each in events_of_page
            if isinstance(each.event, events.LogSegmentStored)
        ]
        await cursor.executemany(
            """
            INSERT INTO segments
                   (job_id, organization_id, attempt, content, segment, lines, object, stored_at)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (job_id, content, attempt, segment) DO UPDATE
               SET lines = excluded.lines, object = excluded.object, stored_at = excluded.stored_at
            """,
            rows,
        )


class SegmentFold:
    """A job's stored pieces; one that is stored again replaces the one before."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int, int], Row] = {}

    def add(self, recorded: Recorded) -> None:
        event = recorded.event
        if isinstance(event, events.LogSegmentStored):
            self._rows[event.content, event.attempt, event.segment] = _row(recorded, event)

    def rows(self) -> dict[str, list[Row]]:
        return {"segments": list(self._rows.values())}


def _row(recorded: Recorded, event: events.LogSegmentStored) -> Row:
    return (
        recorded.stream_id,
        recorded.metadata.organization_id,
        event.attempt,
        event.content,
        event.segment,
        event.lines,
        event.object.model_dump_json(),
        recorded.metadata.recorded_at,
    )


async def segments(
    connection: AsyncConnection[Any], organization_id: str, job_id: str, content: Content = "log"
) -> tuple[LogSegment, ...]:
    """The job's stored pieces in the order they were written."""
    async with connection.cursor(row_factory=class_row(LogSegment)) as cursor:
        await cursor.execute(
            """
            SELECT job_id, attempt, segment, content, lines, object, stored_at
              FROM view_logs.segments
             WHERE job_id = %s AND organization_id = %s AND content = %s
             ORDER BY attempt, segment
            """,
            [job_id, organization_id, content],
        )
        return tuple(await cursor.fetchall())
