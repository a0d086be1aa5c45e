"""Reading the log: pages for whoever catches up, one shared tail for everybody who follows."""

import asyncio
from bisect import bisect_right
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, LiteralString, Self

from psycopg import AsyncConnection, errors
from psycopg.rows import class_row, scalar_row
from psycopg_pool import AsyncConnectionPool

from projections.listening import EVENTS_CHANNEL, follow
from schemas.envelope import Recorded, public_event
from schemas.ids import id_uuid

_COLUMNS = """notification_id AS position, stream_id, originator_version AS version, topic AS type, event_id,
       organization_id, workspace_id"""

# Only the filters that are asked for: a plan that must also fit their absence can use no index for them.
_PAGE_FILTERS: dict[str, LiteralString] = {
    "types": "AND topic = ANY(%(types)s)",
    "organization_id": "AND organization_id = %(organization_id)s",
    # originator_id leads the primary key; stream_id keeps streams apart whose ids share their digits.
    "stream_id": "AND originator_id = %(originator_id)s AND stream_id = %(stream_id)s",
    "until": "AND notification_id <= %(until)s",
}

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

    def public(self, log_id: str) -> dict[str, Any]:
        """The event as clients see it."""
        return public_event(self.position, log_id, self.state)


async def _rows(
    connection: AsyncConnection[Any], query: LiteralString, values: dict[str, Any]
) -> list[LogRow]:
    async with connection.cursor(row_factory=class_row(LogRow)) as cursor:
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
    """A page of events that fit these filters, in log order."""
    wanted: list[LiteralString] = [text for name, text in _PAGE_FILTERS.items() if name in filters]
    # A stream's events are in log order too, and by version the primary key already has them so.
    order: LiteralString = "originator_version" if "stream_id" in filters else "notification_id"
    return f"""
        SELECT {_COLUMNS}, state
          FROM public.kinora_events
         WHERE notification_id > %(after)s {" ".join(wanted)}
         ORDER BY {order}
         LIMIT %(limit)s
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
) -> list[LogRow]:
    """At most `limit` events behind `after`, in log order, that fit every filter given."""
    filters = {
        "types": None if types is None else list(types),
        "organization_id": organization_id,
        "stream_id": stream_id,
        "until": until,
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


async def read_head(connection: AsyncConnection[Any]) -> int:
    """The position of the newest event; 0 for an empty log."""
    return int(await _scalar(connection, "SELECT max(notification_id) FROM public.kinora_events") or 0)


async def read_log_id(connection: AsyncConnection[Any]) -> str | None:
    """The name of this log, so that a restored one is never mistaken for it; None before it is created."""
    log_id = await _scalar(connection, "SELECT log_id FROM public.kinora_log")
    return None if log_id is None else str(log_id)


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
    ) -> list[LogRow]:
        """At most `limit` events behind `after`, in log order, that fit every filter given."""
        async with self._pool.connection() as connection:
            return await read_page(
                connection, after, limit, types=types, organization_id=organization_id, stream_id=stream_id
            )

    async def head(self) -> int:
        """The position of the newest event; 0 for an empty log."""
        async with self._pool.connection() as connection:
            return await read_head(connection)

    async def log_id(self) -> str | None:
        """The name of this log; None before the command side created it."""
        async with self._pool.connection() as connection:
            return await read_log_id(connection)


class LogTail:
    """The newest events, read once per process and shared by all who wait.

    With `keep_bytes` it also keeps that much of the newest events, so that followers which are not far
    behind are served by `since` without a query.
    """

    def __init__(self, conninfo: str, *, poll_seconds: float = 1.0, keep_bytes: int = 0) -> None:
        self._conninfo = conninfo
        self._poll_seconds = poll_seconds
        self._keep_bytes = keep_bytes
        self._moved = asyncio.Condition()
        self._known = False
        self._head = 0
        self._floor = 0
        self._kept: list[LogRow] = []
        self._kept_bytes = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(
            follow(self._conninfo, EVENTS_CHANNEL, self._wake, poll_seconds=self._poll_seconds),
            name="log-tail",
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @property
    def head(self) -> int:
        """The newest position seen; 0 before the first look."""
        return self._head

    async def wait(self, after: int, timeout: float | None = None) -> int:
        """Return the head once it is beyond `after`, or as it is when `timeout` seconds have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._moved:
                await self._moved.wait_for(lambda: self._head > after)
        return self._head

    def since(self, after: int) -> list[LogRow] | None:
        """The events behind `after`, or None when they are no longer (or not yet) kept: then read pages."""
        if not self._keep_bytes or not self._known or after < self._floor:
            return None
        return self._kept[bisect_right(self._kept, after, key=lambda row: row.position) :]

    async def _wake(self, connection: AsyncConnection[Any], _payloads: tuple[str, ...]) -> None:
        head = await read_head(connection)
        if not self._known or head < self._head:
            # The first look, or a log that was restored to an earlier point: start afresh from its end.
            self._kept, self._kept_bytes, self._floor, self._known = [], 0, head, True
            await self._move(head)
        while self._head < head:
            if not self._keep_bytes:
                await self._move(head)
                break
            rows = await read_page(connection, self._head, 500, until=head)
            self._keep(rows)
            await self._move(rows[-1].position if len(rows) == 500 else head)

    def _keep(self, rows: list[LogRow]) -> None:
        self._kept.extend(rows)
        self._kept_bytes += sum(len(row.state) for row in rows)
        drop = 0
        while self._kept_bytes > self._keep_bytes and drop < len(self._kept):
            self._kept_bytes -= len(self._kept[drop].state)
            self._floor = self._kept[drop].position
            drop += 1
        del self._kept[:drop]

    async def _move(self, head: int) -> None:
        async with self._moved:
            self._head = head
            self._moved.notify_all()
