"""Asking for a collection: a row that the orchestrator finds, and its progress for whoever asked."""

from datetime import datetime
from typing import Any, Literal

from psycopg import AsyncConnection
from psycopg.rows import class_row, scalar_row
from pydantic import BaseModel, ConfigDict

from command_api.domain.errors import NotFound
from command_api.storage.outcome import Outcome

KEPT = 100
"""Collections remembered."""
AGAIN_SECONDS = 600.0
"""After a scheduled one that ended early."""
SCHEDULE = "system:orchestrator"
"""Who asks when nobody does."""

_SELECT = """
SELECT id, dry_run, requested_by, requested_at, state, seen, outcome, error, started_at, finished_at
  FROM kinora_collections
"""


class Collection(BaseModel):
    """One collection, from its request to its end."""

    model_config = ConfigDict(frozen=True)

    id: int
    dry_run: bool
    requested_by: str
    requested_at: datetime
    state: Literal["requested", "running", "done", "failed"]
    seen: int
    """Objects looked at so far."""
    outcome: Outcome | None
    error: str | None
    started_at: datetime | None
    finished_at: datetime | None


async def request_collection(connection: AsyncConnection[Any], *, dry_run: bool, requested_by: str) -> int:
    """Ask the orchestrator for a collection; an open request of the kind is joined. Returns its number."""
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute(
            """
            INSERT INTO kinora_collections (dry_run, requested_by) VALUES (%s, %s)
            ON CONFLICT (dry_run) WHERE state IN ('requested', 'running')
            DO UPDATE SET dry_run = excluded.dry_run
            RETURNING id
            """,
            (dry_run, requested_by),
        )
        return int(await cursor.fetchone() or 0)


async def find_collection(connection: AsyncConnection[Any], identifier: int) -> Collection:
    """A collection as it stands.

    Raises:
        NotFound: when there is none of that number.
    """
    async with connection.cursor(row_factory=class_row(Collection)) as cursor:
        await cursor.execute(_SELECT + "WHERE id = %s", (identifier,))
        found = await cursor.fetchone()
    if found is None:
        raise NotFound(f"there is no collection {identifier}; list them with GET /storage/collections")
    return found


async def recent_collections(connection: AsyncConnection[Any], limit: int) -> tuple[Collection, ...]:
    """Newest first."""
    async with connection.cursor(row_factory=class_row(Collection)) as cursor:
        await cursor.execute(_SELECT + "ORDER BY id DESC LIMIT %s", (limit,))
        return tuple(await cursor.fetchall())


async def request_if_due(connection: AsyncConnection[Any], every_seconds: float) -> None:
    """Ask for a collection unless one was lately; a new installation's first is due after as long.

    One that ended early, because a backup was running for instance, is made good soon.
    """
    cursor = await connection.execute(
        "SELECT greatest((SELECT created_at FROM kinora_log),"
        "                max(requested_at) FILTER (WHERE state <> 'failed'))"
        "       < now() - make_interval(secs => %s)"
        "   AND coalesce(max(requested_at) < now() - make_interval(secs => %s), true)"
        "  FROM kinora_collections WHERE NOT dry_run",
        (every_seconds, min(every_seconds, AGAIN_SECONDS)),
    )
    row = await cursor.fetchone()
    if row is not None and row[0]:
        await request_collection(connection, dry_run=False, requested_by=SCHEDULE)


async def begin_next(connection: AsyncConnection[Any]) -> Collection | None:
    """The oldest one that waits, or that broke off with the orchestrator that ran it."""
    async with connection.cursor(row_factory=class_row(Collection)) as cursor:
        await cursor.execute(
            """
            UPDATE kinora_collections SET state = 'running', seen = 0, started_at = now()
             WHERE id = (SELECT id FROM kinora_collections WHERE state IN ('requested', 'running')
                          ORDER BY id LIMIT 1)
            RETURNING id, dry_run, requested_by, requested_at, state, seen, outcome, error,
                      started_at, finished_at
            """
        )
        return await cursor.fetchone()


async def note_progress(connection: AsyncConnection[Any], identifier: int, seen: int) -> None:
    await connection.execute("UPDATE kinora_collections SET seen = %s WHERE id = %s", (seen, identifier))


async def finish(
    connection: AsyncConnection[Any], identifier: int, seen: int, outcome: Outcome, error: str | None
) -> None:
    """Write down how it ended: an error too tells what was deleted before. Old collections are forgotten."""
    await connection.execute(
        "UPDATE kinora_collections"
        " SET state = %s, seen = %s, outcome = %s::jsonb, error = %s, finished_at = now() WHERE id = %s",
        (
            "done" if error is None else "failed",
            seen,
            outcome.model_dump_json(),
            None if error is None else error[:4000],
            identifier,
        ),
    )
    await connection.execute("DELETE FROM kinora_collections WHERE id <= %s", (identifier - KEPT,))
