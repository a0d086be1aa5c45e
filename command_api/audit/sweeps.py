"""Walks through everything, a little at a time and again from the start, whatever restarts in between."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection, errors
from psycopg.rows import class_row

STREAM = "stream"
"""Of EVENTS."""
STREAMS = "aggregates"
"""Of every stream of the log, in all views."""


def rows_of(view: str, table: str) -> str:
    """Of the rows of one table."""
    return f"rows of {view}.{table}"


@dataclass(frozen=True, slots=True)
class Sweep:
    """Where one walk is."""

    sweep: str
    cursor: str
    """Of what it walks through; empty at the start."""
    compared: int
    """In this round."""
    rounds: int
    """Finished ones."""
    began_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    """When the last whole round ended."""


async def cursor_of(connection: AsyncConnection[Any], sweep: str) -> str:
    """Where to go on; empty for the start."""
    found = await (
        await connection.execute("SELECT cursor FROM kinora_audit_sweeps WHERE sweep = %s", [sweep])
    ).fetchone()
    return str(found[0]) if found is not None else ""


async def go_on(connection: AsyncConnection[Any], sweep: str, cursor: str, compared: int) -> None:
    """Note that so many more were compared, up to `cursor`."""
    await connection.execute(
        """
        INSERT INTO kinora_audit_sweeps AS s (sweep, cursor, compared, rounds) VALUES (%s, %s, %s, 0)
        ON CONFLICT (sweep) DO UPDATE
           SET cursor = excluded.cursor, updated_at = now(), compared = s.compared + excluded.compared
        """,
        [sweep, cursor, compared],
    )


async def finish(connection: AsyncConnection[Any], sweep: str) -> None:
    """Note that a round is over; the next begins at the start."""
    await connection.execute(
        """
        INSERT INTO kinora_audit_sweeps AS s (sweep, cursor, compared, rounds, finished_at)
        VALUES (%s, '', 0, 1, now())
        ON CONFLICT (sweep) DO UPDATE
           SET cursor = '', compared = 0, rounds = s.rounds + 1, finished_at = now(), updated_at = now(),
               began_at = now()
        """,
        [sweep],
    )


async def restart(connection: AsyncConnection[Any], sweep: str) -> None:
    """Begin this round again: what it walked through is another one now."""
    await connection.execute(
        "UPDATE kinora_audit_sweeps SET cursor = '', compared = 0 WHERE sweep = %s", [sweep]
    )


async def sweeps(connection: AsyncConnection[Any]) -> Sequence[Sweep]:
    """All of them; none before the auditor ever ran."""
    async with connection.cursor(row_factory=class_row(Sweep)) as cursor:
        try:
            await cursor.execute("SELECT * FROM kinora_audit_sweeps ORDER BY sweep")
        except errors.UndefinedTable:
            return ()
        return await cursor.fetchall()
