"""Before new tables are swapped in: do they hold what the log asks for, and what a second fold comes to?

A rebuild folds whole streams in memory; a running view folds page after page into its tables. A sample of
streams is folded the second way, too, and has to come to the same rows.
"""

import random
from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection, sql
from psycopg.rows import scalar_row

from projections import catalogue
from projections.errors import RebuildRefused
from projections.parking import parked_ids
from projections.reader import LogRow, read_head, read_streams
from projections.rebuild_requests import Checked, TableChecksum
from projections.view import Table, View, active_schema, check_schema, next_schema

SAMPLE_EVENTS = 5000
"""A sample is at most about so large."""
SAMPLE_STREAMS = 200
_PAGE = 1000

# Neither reads the whole log: one counts in an index, the other looks at the first event of each stream,
# which the planner would miss if it saw the types.
_ALL_EVENTS = """
SELECT (SELECT count(*) FROM public.kinora_events WHERE notification_id <= %(position)s)
     - (SELECT count(*)
          FROM projections.parked_streams p
          JOIN public.kinora_events e
            ON e.originator_id = right(p.stream_id, 32)::uuid AND e.stream_id = p.stream_id
           AND e.notification_id BETWEEN p.first_position AND %(position)s
         WHERE p.view = %(view)s AND p.generation = %(generation)s)
"""
_BEGUN_STREAMS = """
  WITH begun AS MATERIALIZED (
       SELECT stream_id, topic, notification_id
         FROM public.kinora_events
        WHERE originator_version = 1 AND notification_id <= %(position)s)
SELECT count(*)
  FROM begun b
 WHERE b.topic = ANY(%(types)s)
   AND NOT EXISTS (
       SELECT FROM projections.parked_streams p
        WHERE p.view = %(view)s AND p.generation = %(generation)s
          AND p.stream_id = b.stream_id AND b.notification_id >= p.first_position)
"""


async def check(
    connection: AsyncConnection[Any],
    view: View,
    generation: int,
    position: int,
    picked: Sequence[tuple[str, int]],
    former: catalogue.Active | None,
) -> Checked:
    """Compare, in a transaction of the caller that sees one moment, the new tables as of `position`.

    `former` is the active generation, when it is of the same version and position.

    Raises:
        RebuildRefused: the new tables are wrong.
    """
    await _census(connection, view, generation, position)
    streams = _sample(picked, await parked_ids(connection, view.name, generation))
    events = await _fold_again(connection, view, streams, position)
    for table in view.tables:
        await _compare_sample(connection, view, table, streams)
    await catalogue.drop_schema(connection, check_schema(view.name))
    tables = {each.name: await checksum(connection, next_schema(view.name), each) for each in view.tables}
    differing: tuple[str, ...] | None = None
    if former is not None:
        before = {
            each.name: await checksum(connection, active_schema(view.name), each) for each in view.tables
        }
        differing = tuple(name for name in tables if tables[name] != before[name])
    return Checked(position=position, streams=len(streams), events=events, tables=tables, differing=differing)


async def checksum(
    connection: AsyncConnection[Any], schema: str, table: Table, streams: Sequence[str] | None = None
) -> TableChecksum:
    """Of a table's rows, in whatever order they lie; with `streams`, only theirs."""
    query = sql.SQL("SELECT count(*), coalesce(bit_xor(hash_record_extended(t, 0)), 0) FROM {} t").format(
        sql.Identifier(schema, table.name)
    )
    if streams is None:
        cursor = await connection.execute(query)
    else:
        of_streams = sql.SQL(" WHERE {} = ANY(%s)").format(sql.Identifier(table.stream))
        cursor = await connection.execute(query + of_streams, [list(streams)])
    rows, value = await cursor.fetchone() or (0, 0)
    return TableChecksum(rows=rows, checksum=f"{value % 2**64:016x}")


async def _census(connection: AsyncConnection[Any], view: View, generation: int, position: int) -> None:
    """The new tables have as many rows as the log asks for, parked streams left out."""
    for table, types in view.census:
        async with connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute(
                sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(next_schema(view.name), table))
            )
            rows = await cursor.fetchone()
        expected = await _count_events(connection, view, generation, position, types)
        if rows != expected:
            raise RebuildRefused(
                f"view {view.name}: table {table} has {rows} rows, the log up to position {position} asks for"
                f" {expected}; the old tables go on serving, the view's fold needs a correction"
            )


async def _count_events(
    connection: AsyncConnection[Any],
    view: View,
    generation: int,
    position: int,
    types: tuple[str, ...] | None,
) -> int:
    if await read_head(connection) == 0:
        return 0
    values = {"position": position, "view": view.name, "generation": generation}
    async with connection.cursor(row_factory=scalar_row) as cursor:
        if types is None:
            await cursor.execute(_ALL_EVENTS, values)
        else:
            await cursor.execute(_BEGUN_STREAMS, values | {"types": list(types)})
        return int(await cursor.fetchone() or 0)


def _sample(picked: Sequence[tuple[str, int]], parked: frozenset[str]) -> list[str]:
    """Some of the streams, not more than a few seconds' worth of events."""
    streams: list[str] = []
    events = 0
    for stream_id, count in random.sample(picked, len(picked)):
        too_many = events + count > (SAMPLE_EVENTS if streams else 4 * SAMPLE_EVENTS)
        if stream_id in parked or too_many:
            continue
        streams.append(stream_id)
        events += count
        if len(streams) == SAMPLE_STREAMS:
            break
    return streams


async def _fold_again(
    connection: AsyncConnection[Any], view: View, streams: Sequence[str], position: int
) -> int:
    """Fold the sample in tables of its own, as the running view does it; returns the number of events."""
    schema = check_schema(view.name)
    await catalogue.create_tables(connection, view, schema)
    await catalogue.finish_tables(connection, view, schema)
    await catalogue.use_schema(connection, schema)
    after = events = 0
    while streams:
        rows: list[LogRow] = await read_streams(
            connection, streams, after, _PAGE, until=position, types=view.types
        )
        if rows:
            async with connection.cursor() as cursor:
                await view.apply(cursor, [row.recorded() for row in rows])
            after, events = rows[-1].position, events + len(rows)
        if len(rows) < _PAGE:
            break
    return events


async def _compare_sample(
    connection: AsyncConnection[Any], view: View, table: Table, streams: Sequence[str]
) -> None:
    new, again = next_schema(view.name), check_schema(view.name)
    if await checksum(connection, new, table, streams) == await checksum(connection, again, table):
        return
    differing = sql.SQL(
        """
        SELECT stream_id
          FROM (SELECT {stream} AS stream_id, t::text FROM {new} t WHERE {stream} = ANY(%s)) n
          FULL JOIN (SELECT {stream} AS stream_id, t::text FROM {again} t) a USING (stream_id, t)
         WHERE n.stream_id IS NULL OR a.stream_id IS NULL
         ORDER BY 1 LIMIT 1
        """
    ).format(
        stream=sql.Identifier(table.stream),
        new=sql.Identifier(new, table.name),
        again=sql.Identifier(again, table.name),
    )
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute(differing, [list(streams)])
        stream_id = await cursor.fetchone()
    raise RebuildRefused(
        f"view {view.name}: folded a second time, {stream_id} comes to other rows of table {table.name}; the"
        " old tables go on serving, the view's fold needs a correction"
    )
