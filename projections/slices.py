"""Cutting the log into slices of whole streams, which a rebuild fills one by one, in any order, on any core.

A slice is a range of stream ids. It is filled in one transaction that also marks it done, so a rebuild that
was cut off goes on with the slices that are left.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, errors
from psycopg.rows import class_row, scalar_row

_FIRST, _LAST = UUID(int=0), UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class Slice:
    """Streams whose id is greater than `after` and not greater than `last`."""

    number: int
    after: UUID
    last: UUID


@dataclass(frozen=True, slots=True)
class Fill:
    """A pass over the log up to a position, which fills the tables of one or more views."""

    id: int
    position: int
    slices: int
    done: int


async def plan(connection: AsyncConnection[Any], position: int, slice_events: int) -> Fill:
    """Cut the log into slices of about so many events, more where one stream has more."""
    bounds = [_FIRST, *(await _bounds(connection, slice_events)), _LAST]
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute("INSERT INTO projections.fills (position) VALUES (%s) RETURNING id", [position])
        fill = int(await cursor.fetchone() or 0)
        await cursor.execute(
            """
            INSERT INTO projections.fill_slices (fill, number, after, last)
            SELECT %s, * FROM unnest(%s::integer[], %s::uuid[], %s::uuid[])
            """,
            [fill, list(range(len(bounds) - 1)), bounds[:-1], bounds[1:]],
        )
    return Fill(fill, position, len(bounds) - 1, 0)


async def _bounds(connection: AsyncConnection[Any], slice_events: int) -> list[UUID]:
    async with connection.cursor(row_factory=scalar_row) as cursor:
        try:
            # The primary key has all of this: the events themselves are not read.
            await cursor.execute(
                """
                SELECT DISTINCT originator_id
                  FROM (SELECT originator_id, row_number() OVER (ORDER BY originator_id) AS place
                          FROM public.kinora_events) AS placed
                 WHERE place %% %s = 0
                 ORDER BY originator_id
                """,
                [slice_events],
            )
        except errors.UndefinedTable:
            return []
        return list(await cursor.fetchall())


async def find_fill(connection: AsyncConnection[Any], fill: int) -> Fill | None:
    """The pass as it stands."""
    async with connection.cursor(row_factory=class_row(Fill)) as cursor:
        await cursor.execute(
            """
            SELECT id, position,
                   (SELECT count(*) FROM projections.fill_slices s WHERE s.fill = f.id) AS slices,
                   (SELECT count(*) FROM projections.fill_slices s WHERE s.fill = f.id AND s.done) AS done
              FROM projections.fills f WHERE id = %s
            """,
            [fill],
        )
        return await cursor.fetchone()


async def left(connection: AsyncConnection[Any], fill: int) -> list[Slice]:
    """The slices that are not done."""
    async with connection.cursor(row_factory=class_row(Slice)) as cursor:
        await cursor.execute(
            "SELECT number, after, last FROM projections.fill_slices WHERE fill = %s AND NOT done ORDER BY 1",
            [fill],
        )
        return await cursor.fetchall()


async def samples(connection: AsyncConnection[Any], fill: int, view: str) -> list[tuple[str, int]]:
    """Streams picked at random while the view was filled, each with the number of its events."""
    cursor = await connection.execute(
        """
        SELECT picked.key, picked.value::bigint
          FROM projections.fill_slices, jsonb_each_text(sample -> %s) AS picked
         WHERE fill = %s
        """,
        [view, fill],
    )
    return await cursor.fetchall()


async def forget(connection: AsyncConnection[Any], fill: int) -> None:
    """Nobody builds from this pass any more; slices go with it."""
    await connection.execute(
        """
        DELETE FROM projections.fills f WHERE id = %s AND NOT EXISTS (
               SELECT FROM projections.rebuilds r WHERE r.fill = f.id AND r.state = 'running')
        """,
        [fill],
    )
