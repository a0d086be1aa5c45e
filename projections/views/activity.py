"""Recent activity: one sentence per event, newest first."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import class_row

from projections.documents import ViewModel, without_nul
from projections.sentences import LEVELS, Level, told
from projections.view import Census, Row, Table
from schemas.envelope import Recorded


class Activity(ViewModel):
    """One event in words."""

    position: int
    event_id: str
    type: str
    stream_id: str
    organization_id: str
    workspace_id: str | None
    actor: str
    level: Level
    sentence: str
    recorded_at: datetime


class Activities:
    name = "activity"
    version = 1
    types: tuple[str, ...] | None = None
    census: Census = (("activities", None),)
    tables: tuple[Table, ...] = (
        Table(
            name="activities",
            stream="stream_id",
            columns=(
                "position bigint NOT NULL",
                "event_id text NOT NULL",
                "type text NOT NULL",
                "stream_id text NOT NULL",
                "organization_id text",
                "workspace_id text",
                "actor text NOT NULL",
                "level text NOT NULL",
                "sentence text NOT NULL",
                "recorded_at timestamptz NOT NULL",
            ),
            key="position",
            indexes=(
                "CREATE INDEX activities_newest ON activities (organization_id, position DESC)",
                "CREATE INDEX activities_of_stream ON activities (stream_id, position DESC)",
            ),
        ),
    )

    def begin(self) -> "ActivityFold":
        return ActivityFold()

    async def apply(self, cursor: AsyncCursor[Any], events: Sequence[Recorded]) -> None:
        rows = [_row(each) for each in events]
        await cursor.execute(
            """
            INSERT INTO activities (position, event_id, type, stream_id, organization_id, workspace_id, actor,
                                    level, sentence, recorded_at)
            SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
                                 %s::text[], %s::text[], %s::text[], %s::timestamptz[])
            """,
            [list(column) for column in zip(*rows, strict=True)],
        )


class ActivityFold:
    """A stream's events in words."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, recorded: Recorded) -> None:
        self._rows.append(_row(recorded))

    def rows(self) -> dict[str, list[Row]]:
        return {"activities": self._rows}


def _row(recorded: Recorded) -> Row:
    words, level = told(recorded)
    metadata = recorded.metadata
    return (
        recorded.position,
        metadata.event_id,
        type(recorded.event).TYPE,
        recorded.stream_id,
        metadata.organization_id,
        metadata.workspace_id,
        metadata.actor,
        level,
        without_nul(words) if "\x00" in words else words,
        metadata.recorded_at,
    )


async def recent(
    connection: AsyncConnection[Any],
    organization_id: str,
    *,
    limit: int,
    before: int | None = None,
    stream_id: str | None = None,
    types: Sequence[str] | None = None,
    min_level: Level = "detail",
) -> list[Activity]:
    """Newest first; `before` is the position of the last row of the page before."""
    async with connection.cursor(row_factory=class_row(Activity)) as cursor:
        await cursor.execute(
            """
            SELECT position, event_id, type, stream_id, organization_id, workspace_id, actor, level, sentence,
                   recorded_at
              FROM view_activity.activities
             WHERE organization_id = %(organization_id)s
               AND (%(before)s::bigint IS NULL OR position < %(before)s)
               AND (%(stream_id)s::text IS NULL OR stream_id = %(stream_id)s)
               AND (%(types)s::text[] IS NULL OR type = ANY(%(types)s))
               AND level = ANY(%(levels)s)
             ORDER BY position DESC
             LIMIT %(limit)s
            """,
            {
                "organization_id": organization_id,
                "before": before,
                "stream_id": stream_id,
                "types": None if types is None else list(types),
                "levels": list(LEVELS[LEVELS.index(min_level) :]),
                "limit": limit,
            },
        )
        return await cursor.fetchall()
