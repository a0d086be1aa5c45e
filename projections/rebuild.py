"""Blue/green rebuild: new tables from position 0 beside the old ones, checked, then swapped in one commit.

Reads are served by the old tables until the swap renames the schemas. A rebuild that was cut off goes on
from its position, which is committed with its rows.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from zlib import crc32

import structlog
from psycopg import AsyncConnection, errors, sql
from psycopg.rows import scalar_row

from projections import catalogue
from projections.errors import RebuildBusy, RebuildRefused
from projections.folding import fold
from projections.listening import CONNECTION_LOST, connect
from projections.reader import LogRow, read_head, read_log_id, scan
from projections.rebuild_requests import Rebuild, fail_rebuild, find_rebuild, request_rebuild
from projections.runner import NO_FSYNC, announce
from projections.view import View, active_schema, next_schema, retired_schema

log = structlog.get_logger(__name__)

LOCK_CLASS = 0x6B726264
"""First key of the advisory locks that keep a view's rebuild to one process."""

Progress = Callable[[Rebuild], None]


async def rebuild(
    conninfo: str,
    view: View,
    *,
    identifier: int | None = None,
    page_size: int = 1000,
    progress: Progress | None = None,
) -> Rebuild:
    """Rebuild `view` and swap it in; `identifier` names the request, without one a new one is written.

    Raises:
        RebuildBusy: when another process is building this view.
        RebuildRefused: when what was built does not agree with the log; the old tables go on serving.
    """
    async with await connect(conninfo, options=NO_FSYNC) as connection, _sole_builder(connection, view):
        await catalogue.install(connection)
        await catalogue.ensure(connection, view)
        if identifier is None:
            identifier = await request_rebuild(
                connection, view.name, reason="called", requested_by="system:caller"
            )
        assert identifier is not None  # noqa: S101 - only an automatic request may be declined
        builder = _Builder(connection, view, identifier, page_size, progress)
        try:
            return await builder.build()
        except CONNECTION_LOST:
            raise
        except Exception as error:
            await fail_rebuild(connection, identifier, f"{type(error).__name__}: {error}")
            await catalogue.drop_schema(connection, next_schema(view.name))
            raise


@asynccontextmanager
async def _sole_builder(connection: AsyncConnection[Any], view: View) -> AsyncIterator[None]:
    # A session's lock: it ends with the connection, however that ends.
    key = crc32(view.name.encode()) - 2**31
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", [LOCK_CLASS, key])
        if not await cursor.fetchone():
            raise RebuildBusy(f"view {view.name} is being rebuilt already; wait until that is done")
    yield


class _Builder:
    def __init__(
        self,
        connection: AsyncConnection[Any],
        view: View,
        identifier: int,
        page_size: int,
        progress: Progress | None,
    ) -> None:
        self._connection = connection
        self._view = view
        self._identifier = identifier
        self._page_size = page_size
        self._progress = progress
        self._next = next_schema(view.name)

    async def build(self) -> Rebuild:
        request = await self._begin()
        generation, position = request.generation or 0, request.position
        log.info("rebuild.started", view=self._view.name, generation=generation, position=position)
        position = await self._catch_up(generation, position)
        await self._check_census(generation, position)
        position = await self._swap(generation, position)
        await announce(self._connection, self._view.name, position)
        await self._drop_retired()
        log.info("rebuild.done", view=self._view.name, generation=generation, position=position)
        return await self._report()

    async def _begin(self) -> Rebuild:
        """Empty tables and a place in the books, unless a rebuild by the same code was cut off."""
        found = await find_rebuild(self._connection, self._identifier)
        log_id = await read_log_id(self._connection)
        resumable = (
            found.state == "running"
            and found.version == self._view.version
            and await catalogue.schema_exists(self._connection, self._next)
        )
        async with self._connection.transaction():
            active = await catalogue.lock_active(self._connection, self._view.name)
            generation = (active.generation if active else 0) + 1
            if resumable and active and active.log_id == log_id and found.generation == generation:
                return found
            await self._connection.execute(
                "DELETE FROM projections.parked_streams WHERE view = %s AND generation = %s",
                [self._view.name, generation],
            )
            await catalogue.create_tables(self._connection, self._view, self._next)
            await catalogue.finish_tables(self._connection, self._view, self._next)
            await self._connection.execute(
                """
                UPDATE projections.rebuilds
                   SET state = 'running', version = %s, generation = %s, position = 0, target = 0,
                       started_at = now(), error = NULL
                 WHERE id = %s
                """,
                [self._view.version, generation, self._identifier],
            )
        return await self._report()

    async def _catch_up(self, generation: int, position: int) -> int:
        """Page by page until the log's end is less than a page away."""
        while True:
            head = await read_head(self._connection)
            if head == 0:
                return position
            async with self._connection.transaction():
                rows = await self._fold_page(generation, position)
                position = rows[-1].position if rows else position
                await self._note(position, head)
            await self._report()
            if len(rows) < self._page_size:
                return position

    async def _fold_page(self, generation: int, position: int) -> list[LogRow]:
        rows = await scan(self._connection, position, self._page_size, self._view.types)
        if rows:
            await catalogue.use_schema(self._connection, self._next)
            await fold(self._connection, self._view, generation, rows)
        return rows

    async def _note(self, position: int, target: int) -> None:
        await self._connection.execute(
            "UPDATE projections.rebuilds SET position = %s, target = %s WHERE id = %s",
            [position, target, self._identifier],
        )

    async def _check_census(self, generation: int, position: int) -> None:
        """Compare the new tables' rows with what the log asks for, parked streams left out."""
        for table, types in self._view.census:
            async with self._connection.cursor(row_factory=scalar_row) as cursor:
                await cursor.execute(
                    sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(self._next, table))
                )
                rows = await cursor.fetchone()
                expected = await self._count_events(generation, position, types)
            if rows != expected:
                raise RebuildRefused(
                    f"view {self._view.name}: table {table} has {rows} rows, the log up to position"
                    f" {position} asks for {expected}; the old tables go on serving, the view's fold needs a"
                    " correction"
                )

    async def _count_events(self, generation: int, position: int, types: tuple[str, ...] | None) -> int:
        if await read_head(self._connection) == 0:
            return 0
        async with self._connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute(
                """
                SELECT CASE WHEN %(types)s::text[] IS NULL THEN count(*) ELSE count(DISTINCT e.stream_id) END
                  FROM public.kinora_events e
                 WHERE e.notification_id <= %(position)s
                   AND (%(types)s::text[] IS NULL OR e.topic = ANY(%(types)s))
                   AND NOT EXISTS (
                       SELECT FROM projections.parked_streams p
                        WHERE p.view = %(view)s AND p.generation = %(generation)s
                          AND p.stream_id = e.stream_id
                          AND e.notification_id >= p.first_position)
                """,
                {
                    "position": position,
                    "types": None if types is None else list(types),
                    "view": self._view.name,
                    "generation": generation,
                },
            )
            return int(await cursor.fetchone() or 0)

    async def _swap(self, generation: int, position: int) -> int:
        """Close the last gap and exchange old for new, while the view's own task waits for the row."""
        await self._drop_retired()
        has_log = await read_head(self._connection) > 0
        log_id = await read_log_id(self._connection)
        async with self._connection.transaction():
            before = await catalogue.lock_active(self._connection, self._view.name)
            while has_log and (rows := await self._fold_page(generation, position)):
                position = rows[-1].position
            await self._refuse_more_parked(before, generation)
            await self._rename()
            await self._connection.execute(
                """
                UPDATE projections.views
                   SET generation = %s, version = %s, position = %s, log_id = %s, updated_at = now()
                 WHERE view = %s
                """,
                [generation, self._view.version, position, log_id, self._view.name],
            )
            await self._connection.execute(
                "DELETE FROM projections.parked_streams WHERE view = %s AND generation <> %s",
                [self._view.name, generation],
            )
            await self._connection.execute(
                """
                UPDATE projections.rebuilds
                   SET state = 'done', position = %s, target = %s, finished_at = now() WHERE id = %s
                """,
                [position, position, self._identifier],
            )
        return position

    async def _refuse_more_parked(self, before: catalogue.Active | None, generation: int) -> None:
        """Not to lose streams that people see now. Tables of other code stand still, which would be worse."""
        if before is None or before.version != self._view.version:
            return
        async with self._connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute(
                """
                SELECT stream_id FROM projections.parked_streams
                 WHERE view = %(view)s AND generation = %(new)s AND first_position <= %(position)s
                EXCEPT
                SELECT stream_id FROM projections.parked_streams
                 WHERE view = %(view)s AND generation = %(old)s
                 ORDER BY 1
                """,
                {
                    "view": self._view.name,
                    "new": generation,
                    "old": before.generation,
                    "position": before.position,
                },
            )
            lost = await cursor.fetchall()
        if lost:
            raise RebuildRefused(
                f"view {self._view.name}: {len(lost)} streams that the old tables hold would be parked,"
                f" such as {lost[0]}; the old tables go on serving, the view's fold needs a correction"
            )

    async def _rename(self) -> None:
        active, retired = active_schema(self._view.name), retired_schema(self._view.name)
        rename = sql.SQL("ALTER SCHEMA {} RENAME TO {}")
        if await catalogue.schema_exists(self._connection, active):
            await self._connection.execute(rename.format(sql.Identifier(active), sql.Identifier(retired)))
        await self._connection.execute(rename.format(sql.Identifier(self._next), sql.Identifier(active)))

    async def _drop_retired(self) -> None:
        """Drop the former tables, waiting for their last readers."""
        while True:
            try:
                async with self._connection.transaction():
                    await self._connection.execute("SET LOCAL lock_timeout = '2s'")
                    await catalogue.drop_schema(self._connection, retired_schema(self._view.name))
            except errors.LockNotAvailable:
                log.info("rebuild.waiting_for_readers", view=self._view.name)
            else:
                return

    async def _report(self) -> Rebuild:
        found = await find_rebuild(self._connection, self._identifier)
        if self._progress is not None:
            self._progress(found)
        return found
