"""The read side's own books: which generation of each view is active, and how far it has read."""

from datetime import datetime
from typing import Any

from psycopg import AsyncConnection, errors, sql
from psycopg.rows import class_row, scalar_row
from pydantic import BaseModel, ConfigDict

from projections.reader import read_head, read_log_id
from projections.view import View, active_schema

INSTALL_LOCK = 0x6B696E6F72610001
"""Advisory lock of the one who creates these tables."""

# The default autovacuum settings are right for most tables, not for rows that change with every page.
_TABLES = """
CREATE SCHEMA IF NOT EXISTS projections;
CREATE TABLE IF NOT EXISTS projections.views (
    view text PRIMARY KEY,
    generation integer NOT NULL,
    version integer NOT NULL,
    position bigint NOT NULL,
    log_id text,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
CREATE TABLE IF NOT EXISTS projections.parked_streams (
    view text NOT NULL,
    generation integer NOT NULL,
    stream_id text NOT NULL,
    first_position bigint NOT NULL,
    last_position bigint NOT NULL,
    events bigint NOT NULL,
    error text NOT NULL,
    parked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (view, generation, stream_id)
);
CREATE TABLE IF NOT EXISTS projections.fills (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    position bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS projections.fill_slices (
    fill bigint NOT NULL REFERENCES projections.fills ON DELETE CASCADE,
    number integer NOT NULL,
    after uuid NOT NULL,
    last uuid NOT NULL,
    done boolean NOT NULL DEFAULT false,
    sample jsonb,
    PRIMARY KEY (fill, number)
);
CREATE TABLE IF NOT EXISTS projections.rebuilds (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    view text NOT NULL,
    reason text NOT NULL,
    requested_by text NOT NULL,
    state text NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'running', 'done', 'failed')),
    version integer,
    generation integer,
    position bigint NOT NULL DEFAULT 0,
    target bigint NOT NULL DEFAULT 0,
    fill bigint,
    filled boolean NOT NULL DEFAULT false,
    checked jsonb,
    error text,
    requested_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX IF NOT EXISTS rebuilds_open ON projections.rebuilds (view)
    WHERE state IN ('requested', 'running');
"""


class Active(BaseModel):
    """The generation of a view that queries read."""

    model_config = ConfigDict(frozen=True)

    view: str
    generation: int
    version: int
    position: int
    log_id: str | None


class ViewStatus(Active):
    """Where a view stands, for people."""

    updated_at: datetime
    parked_streams: int
    rebuilding: bool


async def install(connection: AsyncConnection[Any]) -> None:
    """Create the books where they are missing."""
    async with connection.transaction():
        # CREATE … IF NOT EXISTS alone fails when two processes run it at once.
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [INSTALL_LOCK])
        await connection.execute(_TABLES)


async def lock_active(connection: AsyncConnection[Any], view: str) -> Active | None:
    """The active generation, locked until the transaction ends: whoever writes a view's rows holds this."""
    async with connection.cursor(row_factory=class_row(Active)) as cursor:
        await cursor.execute(
            """
            SELECT view, generation, version, position, log_id
              FROM projections.views WHERE view = %s FOR UPDATE
            """,
            [view],
        )
        return await cursor.fetchone()


async def read_active(connection: AsyncConnection[Any], view: str) -> Active | None:
    """The active generation as it is now."""
    async with connection.cursor(row_factory=class_row(Active)) as cursor:
        await cursor.execute(
            "SELECT view, generation, version, position, log_id FROM projections.views WHERE view = %s",
            [view],
        )
        return await cursor.fetchone()


async def move(connection: AsyncConnection[Any], view: str, position: int) -> None:
    """Record how far the active generation has read, in the transaction that wrote its rows."""
    await connection.execute(
        "UPDATE projections.views SET position = %s, updated_at = now() WHERE view = %s", [position, view]
    )


async def schema_exists(connection: AsyncConnection[Any], schema: str) -> bool:
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute("SELECT to_regnamespace(%s) IS NOT NULL", [schema])
        return bool(await cursor.fetchone())


async def create_tables(connection: AsyncConnection[Any], view: View, schema: str) -> None:
    """Make a view's empty tables in `schema`, without keys and indexes, replacing whatever was there."""
    await drop_schema(connection, schema)
    await connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    await use_schema(connection, schema)
    for table in view.tables:
        await connection.execute(table.create)


async def finish_tables(connection: AsyncConnection[Any], view: View, schema: str) -> None:
    """Give tables that were filled their keys, indexes and statistics."""
    await use_schema(connection, schema)
    for table in view.tables:
        for statement in table.finish:
            await connection.execute(statement)
        await connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(schema, table.name)))


async def pause_vacuum(connection: AsyncConnection[Any], view: View, schema: str) -> None:
    """Keep autovacuum from tables that are being filled: it would only go over the same rows again."""
    for table in view.tables:
        name = sql.Identifier(schema, table.name)
        await connection.execute(sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = false)").format(name))


async def resume_vacuum(connection: AsyncConnection[Any], view: View, schema: str) -> None:
    """Undo `pause_vacuum`."""
    for table in view.tables:
        name = sql.Identifier(schema, table.name)
        await connection.execute(sql.SQL("ALTER TABLE {} RESET (autovacuum_enabled)").format(name))


async def drop_schema(connection: AsyncConnection[Any], schema: str) -> None:
    await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


async def use_schema(connection: AsyncConnection[Any], schema: str) -> None:
    """Let unqualified table names mean those of `schema`, until the transaction ends."""
    await connection.execute("SELECT set_config('search_path', %s, true)", [schema])


async def ensure(connection: AsyncConnection[Any], view: View) -> str | None:
    """Make the view's first, empty generation if there is none.

    Returns:
        Why the existing generation has to be rebuilt before this code can go on with it, or None.
    """
    schema = active_schema(view.name)
    async with connection.transaction():
        active = await lock_active(connection, view.name)
        log_id, head = await read_log_id(connection), await read_head(connection)
        if active is None:
            await create_tables(connection, view, schema)
            await finish_tables(connection, view, schema)
            await connection.execute(
                """
                INSERT INTO projections.views (view, generation, version, position, log_id)
                VALUES (%s, 1, %s, 0, %s)
                """,
                [view.name, view.version, log_id],
            )
            return None
        if active.log_id is None:
            # The view is older than the log: they meet now.
            await connection.execute(
                "UPDATE projections.views SET log_id = %s WHERE view = %s", [log_id, view.name]
            )
        elif active.log_id != log_id:
            return f"the log is {log_id}, the view was built from {active.log_id}"
        if active.position > head:
            return f"the log ends at {head}, the view has read to {active.position}"
        if active.version != view.version:
            return f"the view's version is {view.version}, its tables are of version {active.version}"
        if not await schema_exists(connection, schema):
            return f"schema {schema} is missing"
    return None


async def statuses(connection: AsyncConnection[Any]) -> tuple[ViewStatus, ...]:
    """Every view with its position; empty before the projections process ever ran."""
    async with connection.cursor(row_factory=class_row(ViewStatus)) as cursor:
        try:
            await cursor.execute(
                """
                SELECT v.view, v.generation, v.version, v.position, v.log_id, v.updated_at,
                       (SELECT count(*) FROM projections.parked_streams p
                         WHERE p.view = v.view AND p.generation = v.generation) AS parked_streams,
                       EXISTS (SELECT FROM projections.rebuilds r
                                WHERE r.view = v.view AND r.state IN ('requested', 'running')) AS rebuilding
                  FROM projections.views v
                 ORDER BY v.view
                """
            )
        except errors.UndefinedTable:
            return ()
        return tuple(await cursor.fetchall())
