"""Writes the PostgreSQL side of a backup out of one snapshot, while everything goes on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from command_api import tables
from command_api.backup.errors import InstallationAway, TargetRefused
from command_api.backup.event_lines import decode, encode
from command_api.backup.folder import BackupFolder
from command_api.backup.manifest import Part
from command_api.backup.progress import Report
from command_api.backup.references import References
from command_api.backup.rows import part_writer
from command_api.connected import connected
from command_api.eventlog.tables import EVENTS

LOG_TABLES = frozenset({EVENTS, "kinora_log"})
"""Their rows are written as events, and into the manifest."""
EVENTS_PER_PART = 100_000
BYTES_PER_PART = 256 * 2**20
_REPORT_EVERY = 1000

_COLUMNS = """
    SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum)
      FROM pg_class c
      JOIN pg_attribute a ON a.attrelid = c.oid
     WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
       AND c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
     GROUP BY c.relname
     ORDER BY c.relname
"""


@dataclass
class Snapshot:
    """What was written of one moment of the database."""

    log_id: str
    head: int = 0
    events: int = 0
    parts: list[Part] = field(default_factory=list)
    references: References = field(default_factory=References)
    left_out: list[str] = field(default_factory=list)


async def write_snapshot(conninfo: str, folder: BackupFolder, backup_id: str, report: Report) -> Snapshot:
    """Write events and kept tables as parts of `backup_id`.

    Raises:
        InstallationAway: when the database does not answer, or holds no log.
    """
    try:
        async with _one_moment(conninfo) as connection:
            snapshot = Snapshot(await _log_id(connection, folder))
            await _write_events(connection, folder, backup_id, snapshot, report)
            await _write_tables(connection, folder, backup_id, snapshot, report)
            return snapshot
    except psycopg.errors.UndefinedTable as error:
        raise InstallationAway("the database holds no log; there is nothing to back up") from error
    except psycopg.OperationalError as error:
        raise InstallationAway(f"the database cannot be read: {error}; run the backup again") from error


@asynccontextmanager
async def _one_moment(conninfo: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with connected(
        conninfo, autocommit=True, connect_timeout=5, application_name="kinora backup"
    ) as connection:
        # A slow disk at our end must not end the transaction.
        await connection.execute("SET idle_in_transaction_session_timeout = 0")
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield connection
        await connection.execute("COMMIT")


async def _log_id(connection: psycopg.AsyncConnection, folder: BackupFolder) -> str:
    row = await (await connection.execute("SELECT log_id FROM kinora_log")).fetchone()
    if row is None:
        raise InstallationAway("the database's log has no id; start the service once, then back it up")
    log_id = str(row[0])
    predecessors = await (await connection.execute("SELECT log_id FROM kinora_log_predecessors")).fetchall()
    before = folder.earlier()
    if before is not None and before.log_id not in {log_id, *(str(each) for (each,) in predecessors)}:
        raise TargetRefused(
            f"{folder.root} holds a backup of another installation (log {before.log_id}, made"
            f" {before.created_at:%Y-%m-%d}), and this one's log is {log_id}; name another folder"
        )
    return log_id


async def _write_events(
    connection: psycopg.AsyncConnection,
    folder: BackupFolder,
    backup_id: str,
    snapshot: Snapshot,
    report: Report,
) -> None:
    row = await (await connection.execute(f"SELECT count(*) FROM {EVENTS}")).fetchone()  # noqa: S608
    total = int(row[0]) if row else 0
    report("events", 0, total)
    in_order = f"SELECT notification_id, state FROM {EVENTS} ORDER BY notification_id"  # noqa: S608
    query = f"COPY ({in_order}) TO STDOUT (FORMAT BINARY)"
    async with connection.cursor() as cursor, cursor.copy(query) as copy:
        copy.set_types(["int8", "bytea"])
        rows = copy.rows()
        more = True
        while more:
            name = f"events-{len(snapshot.parts) + 1:05}.ndjson.gz"
            with part_writer(folder, backup_id, name, snapshot.parts, kind="events") as part:
                more = False
                async for position, state in rows:
                    line = encode(position, snapshot.log_id, bytes(state))
                    snapshot.references.apply(decode(line))
                    part.line(line)
                    snapshot.head, snapshot.events = position, snapshot.events + 1
                    if snapshot.events % _REPORT_EVERY == 0:
                        report("events", snapshot.events, total)
                    if part.rows == EVENTS_PER_PART or part.raw_bytes >= BYTES_PER_PART:
                        more = True
                        break
    report("events", snapshot.events, total)


async def _write_tables(
    connection: psycopg.AsyncConnection,
    folder: BackupFolder,
    backup_id: str,
    snapshot: Snapshot,
    report: Report,
) -> None:
    found: list[tuple[str, list[str]]] = await (await connection.execute(_COLUMNS)).fetchall()
    snapshot.left_out = sorted({name for name, _ in found} - tables.KEPT - tables.DERIVED)
    kept = [(name, columns) for name, columns in found if name in tables.KEPT - LOG_TABLES]
    for done, (name, columns) in enumerate(kept):
        report("credentials", done, len(kept))
        more: dict[str, Any] = {"kind": "table", "table": name, "columns": tuple(columns)}
        query = sql.SQL("COPY {} ({}) TO STDOUT").format(
            sql.Identifier(name), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with part_writer(folder, backup_id, f"{name}.copy.gz", snapshot.parts, **more) as part:
            async with connection.cursor() as cursor, cursor.copy(query) as copy:
                async for block in copy:
                    part.lines(block)
    report("credentials", len(kept), len(kept))
