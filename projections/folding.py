"""Folding a page into a view: at full speed, and event by event with parking when one of them fails."""

from collections.abc import Sequence
from typing import Any

import psycopg
import structlog
from psycopg import AsyncConnection

from projections import parking
from projections.reader import LogRow
from projections.view import View

log = structlog.get_logger(__name__)


def is_events_fault(error: Exception) -> bool:
    """Whether the same event would fail again: not a lost server, a deadlock, or missing tables."""
    if isinstance(error, psycopg.errors.UndefinedTable):
        return False
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        # Class 54 is "program limit exceeded", such as a value too long for an index: that is the event.
        return (getattr(error, "sqlstate", None) or "").startswith("54")
    return True


def wanted(view: View, rows: Sequence[LogRow]) -> list[LogRow]:
    """The events that the view folds."""
    types = view.types
    return list(rows) if types is None else [row for row in rows if row.type in types]


async def fold(connection: AsyncConnection[Any], view: View, generation: int, rows: Sequence[LogRow]) -> None:
    """Apply a page inside the caller's transaction, whose search path names the tables to fill.

    An event that fails is undone as a whole, parks its stream, and the rest goes on. Later events of a
    parked stream are only counted: the log keeps them for the replay.
    """
    parked = await parking.parked_ids(connection, view.name, generation)
    rows = wanted(view, rows)
    healthy = [row for row in rows if row.stream_id not in parked]
    await parking.count(connection, view.name, generation, [row for row in rows if row.stream_id in parked])
    if not healthy:
        return
    failure = await try_events(connection, view, healthy)
    if failure is not None:
        log.warning("projection.page_failed", view=view.name, reason=str(failure), events=len(healthy))
        await _fold_singly(connection, view, generation, healthy)


async def _fold_singly(
    connection: AsyncConnection[Any], view: View, generation: int, rows: Sequence[LogRow]
) -> None:
    parked: set[str] = set()
    for row in rows:
        if row.stream_id in parked:
            await parking.count(connection, view.name, generation, [row])
            continue
        failure = await try_events(connection, view, [row])
        if failure is not None:
            parked.add(row.stream_id)
            await parking.park(connection, view.name, generation, row, failure)


async def try_events(
    connection: AsyncConnection[Any], view: View, rows: Sequence[LogRow]
) -> Exception | None:
    """Apply events, or undo all of them and return why one failed."""
    try:
        async with connection.transaction(), connection.cursor() as cursor:
            await view.apply(cursor, [row.recorded() for row in rows])
    except Exception as error:
        # The door of every fold: any fault of an event's own parks its stream.
        if not is_events_fault(error):
            raise
        return error
    return None
