"""Blue/green rebuild: new tables beside the old ones, checked, then swapped in one commit.

Empty tables are filled from slices of whole streams, then get their indexes, then follow the log in its order
until its end is near. Reads are served by the old tables until the swap renames the schemas. Views that are
rebuilt together share the pass over the log, so that each event is read and decoded once. A rebuild that was
cut off goes on where it was: slices, and later the position, are committed with their rows.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from zlib import crc32

import structlog
from psycopg import AsyncConnection, errors, sql
from psycopg.rows import scalar_row
from psycopg.types.json import Jsonb

from projections import catalogue, slices
from projections.checking import check
from projections.errors import RebuildBusy, RebuildRefused
from projections.fill import fill_all
from projections.filling import Target
from projections.folding import fold
from projections.listening import CONNECTION_LOST, connect
from projections.reader import LogRow, read_head, read_log_id, scan
from projections.rebuild_requests import Checked, Rebuild, fail_rebuild, find_rebuild, request_rebuild
from projections.runner import NO_FSYNC, announce
from projections.view import View, active_schema, next_schema, retired_schema

log = structlog.get_logger(__name__)

LOCK_CLASS = 0x6B726264
"""First key of the advisory locks that keep a view's rebuild to one process."""
SLICE_EVENTS = 20_000
STANDSTILL_SECONDS = 1.0
"""Former tables that are behind and do not move for so long are not compared."""

Progress = Callable[[Rebuild], None]
Outcome = Rebuild | Exception


async def rebuild(
    conninfo: str,
    view: View,
    *,
    identifier: int | None = None,
    page_size: int = 1000,
    slice_events: int = SLICE_EVENTS,
    progress: Progress | None = None,
) -> Rebuild:
    """Rebuild `view` and swap it in; `identifier` names the request, without one a new one is written.

    Raises:
        RebuildBusy: when another process is building this view.
        RebuildRefused: when what was built does not agree with the log; the old tables go on serving.
    """
    requests = {} if identifier is None else {view.name: identifier}
    (outcome,) = await rebuild_together(
        conninfo, [view], requests, page_size=page_size, slice_events=slice_events, progress=progress
    )
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def rebuild_together(
    conninfo: str,
    views: Sequence[View],
    requests: Mapping[str, int],
    *,
    page_size: int = 1000,
    slice_events: int = SLICE_EVENTS,
    processes: int = 1,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Rebuild views in one pass over the log; `requests` are the numbers of their requests, where there are.

    Every view ends by itself: swapped in, or with the reason why it was not, which its request holds, too.

    Raises:
        RebuildBusy: when another process is building one of them.
        psycopg.OperationalError: the server is away; what was done so far stays done.
    """
    async with AsyncExitStack() as stack:
        builders: list[_Builder] = []
        for view in views:
            connection = await stack.enter_async_context(await connect(conninfo, options=NO_FSYNC))
            await stack.enter_async_context(_sole_builder(connection, view))
            await catalogue.install(connection)
            await catalogue.ensure(connection, view)
            identifier = requests.get(view.name)
            if identifier is None:
                identifier = await request_rebuild(
                    connection, view.name, reason="called", requested_by="system:caller"
                )
            assert identifier is not None  # noqa: S101 - only an automatic request may be declined
            builders.append(_Builder(connection, view, identifier, page_size, progress))
        try:
            await _fill(conninfo, builders, slice_events, processes)
        except CONNECTION_LOST:
            raise
        except Exception as error:  # noqa: BLE001 - the door of rebuilding: the requests' rows say why
            return [await builder.failed(error) for builder in builders]
        return await _together([builder.finish() for builder in builders])


async def _together(finishing: Sequence[Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in finishing]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _fill(conninfo: str, builders: Sequence["_Builder"], slice_events: int, processes: int) -> None:
    """Fill every view's empty tables, or the slices that an interrupted rebuild of the same views left."""
    found = [await builder.resumable() for builder in builders]
    passes = {request.fill for request in found if request is not None}
    if None in found or len(passes) != 1:
        first = builders[0]
        # Whoever was rebuilt with others before, and alone now, begins anew.
        part = await slices.plan(first.connection, await read_head(first.connection), slice_events)
        for builder in builders:
            await builder.begin(part)
    else:
        (number,) = passes
        found_part = await slices.find_fill(builders[0].connection, number or 0)
        assert found_part is not None  # noqa: S101 - resumable says so
        part = found_part
    done = part.done

    async def on_slice() -> None:
        nonlocal done
        done += 1
        for builder in builders:
            await builder.note(part.position * done // part.slices, part.position)

    todo = await slices.left(builders[0].connection, part.id)
    targets = [Target(builder.view, builder.generation) for builder in builders]
    await fill_all(conninfo, targets, part.id, part.position, todo, processes=processes, on_slice=on_slice)


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
    """One view's way from empty tables to the swap."""

    def __init__(
        self,
        connection: AsyncConnection[Any],
        view: View,
        identifier: int,
        page_size: int,
        progress: Progress | None,
    ) -> None:
        self.connection = connection
        self.view = view
        self.generation = 0
        self._identifier = identifier
        self._page_size = page_size
        self._progress = progress
        self._next = next_schema(view.name)

    async def resumable(self) -> Rebuild | None:
        """The request, when the same code was building from the same log and was cut off."""
        found = await find_rebuild(self.connection, self._identifier)
        active = await catalogue.read_active(self.connection, self.view.name)
        if (
            active is None
            or active.log_id != await read_log_id(self.connection)
            or (found.state, found.version) != ("running", self.view.version)
            or found.generation != active.generation + 1
            or found.fill is None
            or await slices.find_fill(self.connection, found.fill) is None
            or not await catalogue.schema_exists(self.connection, self._next)
        ):
            return None
        self.generation = found.generation
        return found

    async def begin(self, part: slices.Fill) -> None:
        """Empty tables and a place in the books."""
        async with self.connection.transaction():
            active = await catalogue.lock_active(self.connection, self.view.name)
            self.generation = (active.generation if active else 0) + 1
            await self.connection.execute(
                "DELETE FROM projections.parked_streams WHERE view = %s AND generation = %s",
                [self.view.name, self.generation],
            )
            await catalogue.create_tables(self.connection, self.view, self._next)
            await catalogue.pause_vacuum(self.connection, self.view, self._next)
            await self.connection.execute(
                """
                UPDATE projections.rebuilds
                   SET state = 'running', version = %s, generation = %s, position = 0, target = %s, fill = %s,
                       filled = false, checked = NULL, started_at = now(), error = NULL
                 WHERE id = %s
                """,
                [self.view.version, self.generation, part.position, part.id, self._identifier],
            )
        log.info("rebuild.started", view=self.view.name, generation=self.generation, slices=part.slices)
        await self._report()

    async def finish(self) -> Outcome:
        """From filled tables to the swap.

        Raises:
            psycopg.OperationalError: the server is away; what was done so far stays done.
        """
        try:
            request = await find_rebuild(self.connection, self._identifier)
            if not request.filled:
                await self._index(request)
            position = await self._catch_up(request.target if not request.filled else request.position)
            position = await self._check(position, request.fill or 0)
            position = await self._swap(position)
            await announce(self.connection, self.view.name, position)
            await self._drop_retired()
            await slices.forget(self.connection, request.fill or 0)
        except CONNECTION_LOST:
            raise
        except Exception as error:  # noqa: BLE001 - as above, for one view
            return await self.failed(error)
        log.info("rebuild.done", view=self.view.name, generation=self.generation, position=position)
        return await self._report()

    async def failed(self, error: Exception) -> Exception:
        """Leave nothing but the reason."""
        await fail_rebuild(self.connection, self._identifier, f"{type(error).__name__}: {error}")
        await catalogue.drop_schema(self.connection, self._next)
        return error

    async def note(self, position: int, target: int) -> None:
        """Progress, for people, and from where to go on."""
        await self.connection.execute(
            "UPDATE projections.rebuilds SET position = %s, target = %s WHERE id = %s",
            [position, target, self._identifier],
        )
        await self._report()

    async def _index(self, request: Rebuild) -> None:
        async with self.connection.transaction():
            await self.connection.execute("SET LOCAL maintenance_work_mem = '256MB'")
            await catalogue.finish_tables(self.connection, self.view, self._next)
            await self.connection.execute(
                "UPDATE projections.rebuilds SET filled = true, position = target WHERE id = %s",
                [self._identifier],
            )

    async def _catch_up(self, position: int) -> int:
        """Page by page until the log's end is less than a page away."""
        while True:
            head = await read_head(self.connection)
            if head == 0:
                return position
            async with self.connection.transaction():
                rows = await self._fold_page(position)
                position = rows[-1].position if rows else position
                await self._note_quietly(position, head)
            await self._report()
            if len(rows) < self._page_size:
                return position

    async def _fold_page(self, position: int, until: int | None = None) -> list[LogRow]:
        rows = await scan(self.connection, position, self._page_size, self.view.types)
        if until is not None:
            rows = [row for row in rows if row.position <= until]
        if rows:
            await catalogue.use_schema(self.connection, self._next)
            await fold(self.connection, self.view, self.generation, rows)
        return rows

    async def _note_quietly(self, position: int, target: int) -> None:
        await self.connection.execute(
            "UPDATE projections.rebuilds SET position = %s, target = greatest(target, %s) WHERE id = %s",
            [position, target, self._identifier],
        )

    async def _check(self, position: int, fill: int) -> int:
        """Check the new tables, against the former ones as well if these can be had at the same position."""
        comparable = await self._former_arrives(position)
        picked = await slices.samples(self.connection, fill, self.view.name)
        # One moment for everything that is compared; the view's own task goes on meanwhile.
        async with self.connection.transaction():
            await self.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            former = await catalogue.read_active(self.connection, self.view.name) if comparable else None
            while former and (rows := await self._fold_page(position, until=former.position)):
                position = rows[-1].position
            if former is not None:
                position = former.position
            checked = await check(self.connection, self.view, self.generation, position, picked, former)
            await self._keep(checked)
        if checked.differing:
            log.warning("rebuild.former_differs", view=self.view.name, tables=checked.differing)
        return position

    async def _former_arrives(self, position: int) -> bool:
        """Whether the active tables are of this version and log, and have come to `position`."""
        log_id, reached, stood = await read_log_id(self.connection), -1, 0.0
        while True:
            active = await catalogue.read_active(self.connection, self.view.name)
            alike = active and (active.version, active.log_id) == (self.view.version, log_id)
            if active is None or active.position == 0 or not alike:
                return False
            if not await catalogue.schema_exists(self.connection, active_schema(self.view.name)):
                return False
            if active.position >= position:
                return True
            stood = stood + 0.1 if active.position == reached else 0.0
            if stood >= STANDSTILL_SECONDS:
                return False
            reached = active.position
            await asyncio.sleep(0.1)

    async def _keep(self, checked: Checked) -> None:
        await self.connection.execute(
            "UPDATE projections.rebuilds SET checked = %s, position = %s WHERE id = %s",
            [Jsonb(checked.model_dump(mode="json")), checked.position, self._identifier],
        )

    async def _swap(self, position: int) -> int:
        """Close the last gap and exchange old for new, while the view's own task waits for the row."""
        await self._drop_retired()
        has_log = await read_head(self.connection) > 0
        log_id = await read_log_id(self.connection)
        async with self.connection.transaction():
            before = await catalogue.lock_active(self.connection, self.view.name)
            while has_log and (rows := await self._fold_page(position)):
                position = rows[-1].position
            await self._refuse_more_parked(before)
            await catalogue.resume_vacuum(self.connection, self.view, self._next)
            await self._rename()
            await self.connection.execute(
                """
                UPDATE projections.views
                   SET generation = %s, version = %s, position = %s, log_id = %s, updated_at = now()
                 WHERE view = %s
                """,
                [self.generation, self.view.version, position, log_id, self.view.name],
            )
            await self.connection.execute(
                "DELETE FROM projections.parked_streams WHERE view = %s AND generation <> %s",
                [self.view.name, self.generation],
            )
            await self.connection.execute(
                """
                UPDATE projections.rebuilds
                   SET state = 'done', position = %s, target = %s, finished_at = now() WHERE id = %s
                """,
                [position, position, self._identifier],
            )
        return position

    async def _refuse_more_parked(self, before: catalogue.Active | None) -> None:
        """Not to lose streams that people see now. Tables of other code stand still, which would be worse."""
        if before is None or before.version != self.view.version:
            return
        async with self.connection.cursor(row_factory=scalar_row) as cursor:
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
                    "view": self.view.name,
                    "new": self.generation,
                    "old": before.generation,
                    "position": before.position,
                },
            )
            lost = await cursor.fetchall()
        if lost:
            raise RebuildRefused(
                f"view {self.view.name}: {len(lost)} streams that the old tables hold would be parked,"
                f" such as {lost[0]}; the old tables go on serving, the view's fold needs a correction"
            )

    async def _rename(self) -> None:
        active, retired = active_schema(self.view.name), retired_schema(self.view.name)
        rename = sql.SQL("ALTER SCHEMA {} RENAME TO {}")
        if await catalogue.schema_exists(self.connection, active):
            await self.connection.execute(rename.format(sql.Identifier(active), sql.Identifier(retired)))
        await self.connection.execute(rename.format(sql.Identifier(self._next), sql.Identifier(active)))

    async def _drop_retired(self) -> None:
        """Drop the former tables, waiting for their last readers."""
        while True:
            try:
                async with self.connection.transaction():
                    await self.connection.execute("SET LOCAL lock_timeout = '2s'")
                    await catalogue.drop_schema(self.connection, retired_schema(self.view.name))
            except errors.LockNotAvailable:
                log.info("rebuild.waiting_for_readers", view=self.view.name)
            else:
                return

    async def _report(self) -> Rebuild:
        found = await find_rebuild(self.connection, self._identifier)
        if self._progress is not None:
            self._progress(found)
        return found
