"""Folds streams again from the log and compares the rows with those that queries read.

A comparison looks at one moment: log, books and rows of one snapshot, at the position that the view had
reached in it. So a view that lags is never taken for one that differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import AsyncConnection, errors, sql
from psycopg.rows import class_row, scalar_row, tuple_row

from projections.catalogue import Active
from projections.parking import parked_ids
from projections.reader import LogRow
from projections.view import StreamFold, Table, View, active_schema
from schemas.ids import ID_PATTERN, id_uuid

FETCH = 2000
_SHOWN_FIELDS = 8

_ACTIVE = "SELECT view, generation, version, position, log_id FROM projections.views WHERE view = %s"
# Only by keys: there may be a hundred million other events.
_EVENTS: LiteralString = """
SELECT notification_id AS position, stream_id, originator_version AS version, topic AS type, event_id,
       organization_id, workspace_id, state
  FROM public.kinora_events
 WHERE originator_id = ANY(%(originators)s) AND stream_id = ANY(%(streams)s)
   AND notification_id > %(after)s AND notification_id <= %(position)s
   AND (%(types)s::text[] IS NULL OR topic = ANY(%(types)s))
 ORDER BY notification_id
 LIMIT %(limit)s
"""
_COMPARE: LiteralString = """
WITH expected AS (SELECT {stream} AS stream, to_jsonb(t) AS row FROM pg_temp.{table} t),
     found AS (SELECT {stream} AS stream, to_jsonb(t) AS row FROM {schema}.{table} t
                WHERE {stream} = ANY(%(streams)s))
SELECT stream, true, row FROM (TABLE expected EXCEPT ALL TABLE found) AS missing
UNION ALL
SELECT stream, false, row FROM (TABLE found EXCEPT ALL TABLE expected) AS unexpected
LIMIT 1000
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """A stream whose rows are not what its events come to."""

    view: str
    stream_id: str
    organization_id: str | None
    detail: str
    """Names tables and fields, never what stands in them."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What one look at some streams of a view found."""

    view: str
    generation: int
    position: int
    same: int
    parked: tuple[str, ...]
    """Left alone by the view, which is known already, and no difference."""
    differences: tuple[Difference, ...]


async def comparable(connection: AsyncConnection[Any], view: View) -> str | None:
    """Why the view cannot be compared with the log now; None when it can."""
    active = await _active(connection, view.name)
    if active is None:
        return "it was never built"
    if active.version != view.version:
        return f"its tables are of version {active.version}, and this release reads version {view.version}"
    for table in view.tables:
        try:
            async with connection.transaction():
                await next_rows(connection, view, table, "", 1)
        except (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName) as error:
            return str(error).splitlines()[0]
    return None


async def compare_streams(
    connection: AsyncConnection[Any], view: View, stream_ids: Sequence[str]
) -> Compared | None:
    """Compare what the active tables hold of these streams with what their events come to.

    Writes nothing: what it needs for comparing are temporary tables, which are gone afterwards.

    Returns:
        None while the tables are another version's, and wait for their rebuild.
    """
    async with connection.transaction(force_rollback=True):
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        active = await _active(connection, view.name)
        if active is None or active.version != view.version:
            return None
        parked = await parked_ids(connection, view.name, active.generation)
        looked_at = sorted({each for each in stream_ids if each not in parked})
        folded = await _fold(connection, view, looked_at, active.position)
        differing = dict(folded.failures)
        for table in view.tables:
            rows = await _compare(connection, view, table, looked_at, folded.folds)
            for stream_id, missing, row in rows:
                differing.setdefault(stream_id, []).append((table.name, missing, row))
    return Compared(
        view.name,
        active.generation,
        active.position,
        len(looked_at) - len(differing),
        tuple(sorted(parked.intersection(stream_ids))),
        tuple(
            Difference(view.name, stream_id, folded.organizations.get(stream_id), _told(found))
            for stream_id, found in sorted(differing.items())
        ),
    )


_Found = list[tuple[str, bool, dict[str, Any]]]
"""Table, whether the row is missing there, and the row."""


@dataclass(frozen=True, slots=True)
class _Folded:
    folds: Mapping[str, StreamFold]
    failures: Mapping[str, _Found]
    organizations: Mapping[str, str | None]


async def _active(connection: AsyncConnection[Any], view: str) -> Active | None:
    """Without the lock that writers take: an audit holds nobody up."""
    try:
        async with connection.transaction(), connection.cursor(row_factory=class_row(Active)) as cursor:
            await cursor.execute(_ACTIVE, [view])
            return await cursor.fetchone()
    except errors.UndefinedTable:
        return None


async def _fold(
    connection: AsyncConnection[Any], view: View, stream_ids: Sequence[str], position: int
) -> _Folded:
    folds: dict[str, StreamFold] = {}
    failures: dict[str, _Found] = {}
    organizations: dict[str, str | None] = {}
    values = {
        "originators": [id_uuid(each) for each in stream_ids if ID_PATTERN.fullmatch(each)],
        "streams": list(stream_ids),
        "position": position,
        "types": None if view.types is None else list(view.types),
        "after": 0,
        "limit": FETCH,
    }
    async with connection.cursor(row_factory=class_row(LogRow)) as cursor:
        while rows := await (await cursor.execute(_EVENTS, values)).fetchall():
            values["after"] = rows[-1].position
            for row in rows:
                organizations.setdefault(row.stream_id, row.organization_id)
                if row.stream_id in failures:
                    continue
                try:
                    folds.setdefault(row.stream_id, view.begin()).add(row.recorded())
                except Exception as error:  # noqa: BLE001 (whatever a fold raises, the stream is not as it should be)
                    failures[row.stream_id] = [(f"event {row.position}: {type(error).__name__}", True, {})]
                    folds.pop(row.stream_id, None)
    return _Folded(folds, failures, organizations)


async def _compare(
    connection: AsyncConnection[Any],
    view: View,
    table: Table,
    stream_ids: Sequence[str],
    folds: Mapping[str, StreamFold],
) -> list[tuple[str, bool, dict[str, Any]]]:
    await connection.execute("SELECT set_config('search_path', 'pg_temp', true)")
    await connection.execute(table.create)
    columns = sql.SQL(", ").join(map(sql.Identifier, table.names))
    into = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), columns)
    async with connection.cursor() as cursor, cursor.copy(into) as copy:
        for fold in folds.values():
            for row in fold.rows().get(table.name, ()):
                await copy.write_row(row)
    query = sql.SQL(_COMPARE).format(
        stream=sql.Identifier(table.stream),
        table=sql.Identifier(table.name),
        schema=sql.Identifier(active_schema(view.name)),
    )
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(query, {"streams": list(stream_ids)})
        return await cursor.fetchall()


def _told(found: _Found) -> str:
    """What differs, in words that may stand in a log: names, no values."""
    parts = []
    for table in dict.fromkeys(name for name, _, _ in found):
        missing = [row for name, is_missing, row in found if name == table and is_missing]
        unexpected = [row for name, is_missing, row in found if name == table and not is_missing]
        if missing == [{}]:
            parts.append(f"it cannot be folded ({table})")
        elif len(missing) == len(unexpected) == 1:
            parts.append(f"{table} differs in {_fields(missing[0], unexpected[0])}")
        else:
            parts.append(
                f"{table} lacks {len(missing)} rows and has {len(unexpected)} that no event explains"
            )
    return "; ".join(parts)


def _fields(one: Any, other: Any, prefix: str = "") -> str:
    names: list[str] = []
    for name in sorted(one.keys() | other.keys()):
        left, right = one.get(name), other.get(name)
        if left == right:
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            names.append(_fields(left, right, f"{prefix}{name}."))
        else:
            names.append(f"{prefix}{name}")
    more = len(names) - _SHOWN_FIELDS
    return ", ".join(names[:_SHOWN_FIELDS]) + (f" and {more} more" if more > 0 else "")


# ---- which streams to look at ------------------------------------------------------------------------

_CHANGED: LiteralString = """
SELECT stream_id FROM (
    SELECT stream_id, notification_id FROM public.kinora_events
     WHERE notification_id > %(after)s AND notification_id <= %(until)s
     ORDER BY notification_id DESC LIMIT 2000) AS newest
 GROUP BY stream_id ORDER BY max(notification_id) DESC LIMIT %(limit)s
"""
_ANY: LiteralString = """
SELECT DISTINCT e.stream_id
  FROM generate_series(1, %(limit)s),
       LATERAL (SELECT floor(random() * (%(head)s + 1) + 0 * generate_series) AS at) AS place,
       LATERAL (SELECT stream_id FROM public.kinora_events
                 WHERE notification_id >= place.at ORDER BY notification_id LIMIT 1) AS e
"""
_NEXT: LiteralString = """
SELECT stream_id FROM public.kinora_events
 WHERE originator_version = 1 AND originator_id > %(after)s
 ORDER BY originator_id LIMIT %(limit)s
"""
_NEXT_ROWS: LiteralString = """
SELECT DISTINCT {stream} FROM {schema}.{table} WHERE {stream} > %(after)s ORDER BY {stream} LIMIT %(limit)s
"""


async def changed_streams(connection: AsyncConnection[Any], after: int, until: int, limit: int) -> list[str]:
    """Streams with events between two positions, newest first."""
    return await _ids(connection, _CHANGED, {"after": after, "until": until, "limit": limit})


async def any_streams(connection: AsyncConnection[Any], head: int, limit: int) -> list[str]:
    """Streams at random; the more events one has, the likelier it is among them."""
    return await _ids(connection, _ANY, {"head": head, "limit": limit})


async def next_streams(connection: AsyncConnection[Any], after: str, limit: int) -> list[str]:
    """The streams behind one (or the first, for an empty id) in the order of the digits of their ids."""
    digits = id_uuid(after) if after else id_uuid("str_" + "0" * 32)
    return await _ids(connection, _NEXT, {"after": digits, "limit": limit})


async def next_rows(
    connection: AsyncConnection[Any], view: View, table: Table, after: str, limit: int
) -> list[str]:
    """The streams that a table has rows of, by id, behind one: some may be of no stream at all."""
    query = sql.SQL(_NEXT_ROWS).format(
        stream=sql.Identifier(table.stream),
        table=sql.Identifier(table.name),
        schema=sql.Identifier(active_schema(view.name)),
    )
    return await _ids(connection, query, {"after": after, "limit": limit})


async def _ids(
    connection: AsyncConnection[Any], query: LiteralString | sql.Composed, values: dict[str, Any]
) -> list[str]:
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchall()
