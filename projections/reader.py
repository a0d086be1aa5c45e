"""Reading the log in pages, by whoever catches up."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection, errors
from psycopg.rows import args_row, scalar_row
from psycopg_pool import AsyncConnectionPool

from schemas.envelope import Recorded, public_bytes, public_event
from schemas.ids import id_uuid
from schemas.pins import Pins, pinned

_COLUMNS = """notification_id AS position, stream_id, originator_version AS version, topic AS type, event_id,
       organization_id, workspace_id"""

_NAMES: LiteralString = "position, stream_id, version, type, event_id, organization_id, workspace_id"

# Only the filters that are asked for: a plan that must also fit their absence can use no index for them.
_PAGE_FILTERS: dict[str, LiteralString] = {
    "types": "AND topic = ANY(%(types)s)",
    "organization_id": "AND organization_id = %(organization_id)s",
    # originator_id leads the primary key; stream_id keeps streams apart whose ids share their digits.
    "stream_id": "AND originator_id = %(originator_id)s AND stream_id = %(stream_id)s",
    "until": "AND notification_id <= %(until)s",
}

_AT = f"""
SELECT {_COLUMNS}, state
  FROM public.kinora_events
 WHERE notification_id = ANY(%(positions)s)
 ORDER BY notification_id
"""  # noqa: S608 - only constants are put in

_LAST = """
SELECT max(notification_id)
  FROM public.kinora_events
 WHERE organization_id = %(organization_id)s AND notification_id <= %(until)s
"""

_CLOCKS_APART = timedelta(minutes=1)
_BEFORE_ANY = datetime(1970, 1, 1, tzinfo=UTC)
"""No log is older, and from the first days that dates can tell nothing can be subtracted."""

_NEXT_TIME = """
SELECT notification_id, recorded_at
  FROM public.kinora_events
 WHERE notification_id > %(after)s
 ORDER BY notification_id
 LIMIT 1
"""

_FIRST_SINCE = """
SELECT notification_id
  FROM public.kinora_events
 WHERE notification_id > %(after)s AND recorded_at >= %(time)s
 ORDER BY notification_id
 LIMIT 1
"""

# Rows of no interest still move the position, but their bytes need not travel.
_SCAN = f"""
SELECT {_COLUMNS},
       CASE WHEN %(types)s::text[] IS NULL OR topic = ANY(%(types)s) THEN state ELSE ''::bytea END AS state
  FROM public.kinora_events
 WHERE notification_id > %(after)s
 ORDER BY notification_id
 LIMIT %(limit)s
"""  # noqa: S608 - only constants are put in


@dataclass(frozen=True, slots=True)
class LogRow:
    """One stored event and its place; decoded only when asked."""

    position: int
    stream_id: str
    version: int
    type: str
    event_id: str
    organization_id: str | None
    workspace_id: str | None
    state: bytes

    def recorded(self) -> Recorded:
        """The event, decoded and upcast.

        Raises:
            UnknownEventType: when this code does not know its type or version.
            pydantic.ValidationError: when the payload does not fit its type.
        """
        return Recorded.from_state(self.position, self.state)

    def public_bytes(self, log_id: str) -> bytes:
        """The event as clients see it, in the stored bytes."""
        return public_bytes(self.position, log_id, self.state)

    def as_pinned(self, pins: Pins) -> "LogRow":
        """The event in the versions that a reader pinned; itself where they want nothing else."""
        state = pinned(self.state, self.type, pins)
        return self if state is self.state else replace(self, state=state)

    def public(self, log_id: str) -> dict[str, Any]:
        """The event as clients see it."""
        return public_event(self.position, log_id, self.state)


async def _rows(
    connection: AsyncConnection[Any], query: LiteralString, values: dict[str, Any]
) -> list[LogRow]:
    # In binary: as text, the stored bytes would travel as twice as many hexadecimal digits.
    async with connection.cursor(row_factory=args_row(LogRow), binary=True) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchall()


async def _scalar(connection: AsyncConnection[Any], query: LiteralString) -> Any:
    """One value, or None while the command side has not yet created the log at its first start."""
    try:
        # In a block of its own, so that a caller's transaction survives the missing table.
        async with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute(query)
            return await cursor.fetchone()
    except errors.UndefinedTable:
        return None


def page_query(filters: Collection[str]) -> LiteralString:
    """A page of events that fit these filters, in log order, of at most `max_bytes` if that is among them.

    The first event comes whatever its size, so that there is always a next page.
    """
    wanted: list[LiteralString] = [text for name, text in _PAGE_FILTERS.items() if name in filters]
    # A stream's events are in log order too, and by version the primary key already has them so.
    order: LiteralString = "originator_version" if "stream_id" in filters else "notification_id"
    page: LiteralString = f"""
        SELECT {_COLUMNS}, state
          FROM public.kinora_events
         WHERE notification_id > %(after)s {" ".join(wanted)}
         ORDER BY {order}
         LIMIT %(limit)s
        """  # noqa: S608 - only constants are put in
    if "max_bytes" not in filters:
        return page
    # The length of a value is known without fetching it, so what is cut off is never read.
    return f"""
        SELECT {_NAMES}, state
          FROM (SELECT *, sum(octet_length(state)) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING)
                          - octet_length(state) AS bytes_before
                  FROM ({page}) AS whole) AS measured
         WHERE bytes_before < %(max_bytes)s
         ORDER BY position
        """  # noqa: S608 - only constants are put in


async def read_page(
    connection: AsyncConnection[Any],
    after: int,
    limit: int,
    *,
    types: Sequence[str] | None = None,
    organization_id: str | None = None,
    stream_id: str | None = None,
    until: int | None = None,
    max_bytes: int | None = None,
) -> list[LogRow]:
    """At most `limit` events behind `after`, in log order, that fit every filter given.

    With `max_bytes` there are no more than make so many stored bytes, but for the last of them: an empty
    page is then the only sign of the end.
    """
    filters = {
        "types": None if types is None else list(types),
        "organization_id": organization_id,
        "stream_id": stream_id,
        "until": until,
        "max_bytes": max_bytes,
    }
    asked = {name: value for name, value in filters.items() if value is not None}
    values: dict[str, object] = {**asked, "after": after, "limit": limit}
    if stream_id is not None:
        values["originator_id"] = id_uuid(stream_id)
    try:
        return await _rows(connection, page_query(asked.keys()), values)
    except errors.UndefinedTable:
        return []


_STREAMS = f"""
SELECT {_COLUMNS}, state
  FROM public.kinora_events
 WHERE originator_id = ANY(%(originators)s) AND stream_id = ANY(%(streams)s)
   AND notification_id > %(after)s AND notification_id <= %(until)s
   AND (%(types)s::text[] IS NULL OR topic = ANY(%(types)s))
 ORDER BY notification_id
 LIMIT %(limit)s
"""  # noqa: S608 - only constants are put in


async def read_streams(
    connection: AsyncConnection[Any],
    streams: Sequence[str],
    after: int,
    limit: int,
    *,
    until: int,
    types: Sequence[str] | None,
) -> list[LogRow]:
    """At most `limit` events of some streams, together in log order."""
    values = {
        "originators": [id_uuid(stream_id) for stream_id in streams],
        "streams": list(streams),
        "after": after,
        "until": until,
        "types": None if types is None else list(types),
        "limit": limit,
    }
    return await _rows(connection, _STREAMS, values)


async def scan(
    connection: AsyncConnection[Any], after: int, limit: int, types: Sequence[str] | None
) -> list[LogRow]:
    """The next `limit` events whatever their type; `state` is empty for types that are not named."""
    values = {"after": after, "limit": limit, "types": None if types is None else list(types)}
    return await _rows(connection, _SCAN, values)


async def read_events(connection: AsyncConnection[Any], positions: Sequence[int]) -> list[LogRow]:
    """The events at these positions, in log order."""
    return await _rows(connection, _AT, {"positions": list(positions)})


async def read_head(connection: AsyncConnection[Any]) -> int:
    """The position of the newest event; 0 for an empty log."""
    return int(await _scalar(connection, "SELECT max(notification_id) FROM public.kinora_events") or 0)


async def read_log_id(connection: AsyncConnection[Any]) -> str | None:
    """The name of this log, so that a restored one is never mistaken for it; None before it is created."""
    log_id = await _scalar(connection, "SELECT log_id FROM public.kinora_log")
    return None if log_id is None else str(log_id)


async def read_place_of(connection: AsyncConnection[Any], time: datetime) -> int:
    """The position behind which everything lies that was recorded at `time` or later.

    Times grow with positions but for the clocks of several machines and the moments between a decision and
    its commit: events whose times are out of order by more than a minute may lie before the place found.
    No index is needed: a search by halves over the positions, then a look through that minute.
    """
    time = max(time, _BEFORE_ANY)
    low, high = 0, await read_head(connection)
    while low < high:
        middle = (low + high) // 2
        found = await (await connection.execute(_NEXT_TIME, {"after": middle})).fetchone()
        if found is None or found[1] >= time - _CLOCKS_APART:
            high = middle
        else:
            low = int(found[0])
    first = await (await connection.execute(_FIRST_SINCE, {"after": low, "time": time})).fetchone()
    return await read_head(connection) if first is None else int(first[0]) - 1


class LogReader:
    """Pages of the log through a connection pool; the pool belongs to the caller."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def page(
        self,
        after: int,
        limit: int,
        types: Sequence[str] | None = None,
        organization_id: str | None = None,
        stream_id: str | None = None,
        until: int | None = None,
        max_bytes: int | None = None,
    ) -> list[LogRow]:
        """As `read_page`."""
        async with self._pool.connection() as connection:
            return await read_page(
                connection,
                after,
                limit,
                types=types,
                organization_id=organization_id,
                stream_id=stream_id,
                until=until,
                max_bytes=max_bytes,
            )

    async def place_of(self, time: datetime) -> int:
        """The position behind which everything lies that was recorded at `time` or later."""
        async with self._pool.connection() as connection:
            return await read_place_of(connection, time)

    async def events(self, positions: Sequence[int]) -> list[LogRow]:
        """The events at these positions, in log order."""
        async with self._pool.connection() as connection:
            return await read_events(connection, positions)

    async def last(self, organization_id: str, until: int) -> int:
        """The position of the organization's newest event up to `until`; 0 when there is none."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_LAST, {"organization_id": organization_id, "until": until})
            found = await cursor.fetchone()
        return int(found[0] or 0) if found else 0

    async def head(self) -> int:
        """The position of the newest event; 0 for an empty log."""
        async with self._pool.connection() as connection:
            return await read_head(connection)

    async def log_id(self) -> str | None:
        """The name of this log; None before the command side created it."""
        async with self._pool.connection() as connection:
            return await read_log_id(connection)
