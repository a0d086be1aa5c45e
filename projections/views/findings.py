"""What the auditor found, one row per finding, with whether it still stands."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import class_row

from projections.documents import ViewModel, without_nul
from projections.errors import MissingRow
from projections.view import Census, Row, Table
from schemas.envelope import Recorded
from schemas.events import finding as events

Status = Literal["open", "resolved"]


class Finding(ViewModel):
    """Something derived that differs, or differed, from the log."""

    id: str
    organization_id: str | None
    """None where the whole installation is concerned."""
    check: events.Check
    subject: str
    about: str
    status: Status
    detail: str
    remedy: str
    opened_at: datetime
    """The last time."""
    resolved_at: datetime | None
    times: int
    """How often it was opened."""
    last_position: int


_FIELDS = tuple(Finding.model_fields)


class FindingFold:
    """One finding, from its first event on."""

    def __init__(self) -> None:
        self.finding: Finding | None = None

    def add(self, recorded: Recorded) -> None:
        self.finding = fold(self.finding, recorded)

    def rows(self) -> dict[str, list[Row]]:
        return {} if self.finding is None else {"findings": [_row(self.finding)]}


class Findings:
    name = "findings"
    version = 1
    types: tuple[str, ...] | None = (events.FindingOpened.TYPE, events.FindingResolved.TYPE)
    census: Census = (("findings", (events.FindingOpened.TYPE,)),)
    tables: tuple[Table, ...] = (
        Table(
            name="findings",
            stream="id",
            columns=(
                "id text NOT NULL",
                "organization_id text",
                '"check" text NOT NULL',
                "subject text NOT NULL",
                "about text NOT NULL",
                "status text NOT NULL",
                "detail text NOT NULL",
                "remedy text NOT NULL",
                "opened_at timestamptz NOT NULL",
                "resolved_at timestamptz",
                "times integer NOT NULL",
                "last_position bigint NOT NULL",
            ),
            key="id",
            indexes=("CREATE INDEX findings_open ON findings (opened_at) WHERE status = 'open'",),
        ),
    )

    def begin(self) -> FindingFold:
        return FindingFold()

    async def apply(self, cursor: AsyncCursor[Any], events_of_page: Sequence[Recorded]) -> None:
        """Findings are few: read and written one by one."""
        for recorded in events_of_page:
            async with cursor.connection.cursor(row_factory=class_row(Finding)) as rows:
                await rows.execute("SELECT * FROM findings WHERE id = %s", [recorded.stream_id])
                before = await rows.fetchone()
            after = fold(before, recorded)
            await cursor.execute("DELETE FROM findings WHERE id = %s", [after.id])
            await cursor.execute(
                """
                INSERT INTO findings (id, organization_id, "check", subject, about, status, detail, remedy,
                                      opened_at, resolved_at, times, last_position)
                VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
                """,
                _row(after),
            )


def fold(before: Finding | None, recorded: Recorded) -> Finding:
    """The finding after an event.

    Raises:
        MissingRow: when it is resolved and was never opened.
    """
    at, event = recorded.metadata.recorded_at, recorded.event
    if isinstance(event, events.FindingOpened):
        return Finding(
            id=recorded.stream_id,
            organization_id=recorded.metadata.organization_id,
            check=event.check,
            subject=without_nul(event.subject),
            about=without_nul(event.about),
            status="open",
            detail=without_nul(event.detail),
            remedy=without_nul(event.remedy),
            opened_at=at,
            resolved_at=None,
            times=(before.times if before is not None else 0) + 1,
            last_position=recorded.position,
        )
    if before is None:
        raise MissingRow(f"{recorded.stream_id} is resolved and was never opened")
    changes = {"status": "resolved", "resolved_at": at, "last_position": recorded.position}
    return before.model_copy(update=changes)


def _row(finding: Finding) -> Row:
    return tuple(getattr(finding, name) for name in _FIELDS)


async def findings(
    connection: AsyncConnection[Any],
    *,
    organization_id: str | None = None,
    status: Status | None = None,
    limit: int = 100,
) -> list[Finding]:
    """Newest first, of one organization or of all."""
    async with connection.cursor(row_factory=class_row(Finding)) as cursor:
        await cursor.execute(
            """
            SELECT * FROM view_findings.findings
             WHERE (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s)
               AND (%(status)s::text IS NULL OR status = %(status)s)
             ORDER BY opened_at DESC, id LIMIT %(limit)s
            """,
            {"organization_id": organization_id, "status": status, "limit": limit},
        )
        return await cursor.fetchall()
