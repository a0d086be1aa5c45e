"""Makes an installation of a backup: rows in one transaction, under a new log id, and every object proven."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from command_api import tables
from command_api.backup.errors import BackupDamaged, InstallationAway, NotEmpty
from command_api.backup.folder import BackupFolder, object_path
from command_api.backup.manifest import Manifest, Part
from command_api.backup.parallel import in_parallel
from command_api.backup.progress import Report, silent
from command_api.backup.rows import part_lines
from command_api.backup.verify import Checked, events_of
from command_api.connected import connected
from command_api.eventlog.bulk import LOCK, EventRow, import_rows
from command_api.eventlog.errors import ImportRefused
from command_api.objects import ObjectStore
from schemas.ids import uuid7
from schemas.settings import PostgresSettings, S3Settings

_TRANSFERS = 4
_CHUNK_BYTES = 4 * 2**20
_REPORT_EVERY = 1000
_MAY_HOLD_ROWS = frozenset({"kinora_log", "kinora_relay_epochs", "kinora_audit_keys"})
"""An installation that was started and never used has these."""

_FOREIGN_KEYS = """
    SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint
     WHERE contype = 'f' AND connamespace = 'public'::regnamespace AND conrelid <> confrelid
"""
_SEQUENCES = """
    SELECT c.relname, a.attname, pg_get_serial_sequence(quote_ident(c.relname), a.attname)
      FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
       AND pg_get_serial_sequence(quote_ident(c.relname), a.attname) IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was made."""

    log_id: str
    predecessor: str
    head: int
    events: int
    objects: int
    lost: int
    """Objects that are needed and were missing already when the backup was made."""


async def restore(
    folder: BackupFolder,
    checked: Checked,
    postgres: PostgresSettings,
    s3: S3Settings,
    report: Report = silent,
) -> Restored:
    """Fill an empty database and an empty bucket.

    The rows come last and all together: as long as they are not there, nothing was restored.

    Raises:
        NotEmpty: naming what is there.
        BackupError: when the backup turns out to be damaged.
        ObjectStoreUnavailable: when the object store does not answer.
    """
    try:
        async with connected(
            postgres.conninfo(), autocommit=True, connect_timeout=5, application_name="kinora restore"
        ) as connection:
            await tables.create_tables(connection)
        with psycopg.connect(
            postgres.conninfo(), autocommit=True, connect_timeout=5, application_name="kinora restore"
        ) as rows_connection:
            rows_connection.execute("SET idle_in_transaction_session_timeout = 0")
            _refuse_rows(rows_connection)
            async with ObjectStore(s3) as store:
                await store.ensure_bucket()
                await _refuse_objects(store, s3.bucket)
                await _put_objects(folder, checked, store, report)
            return await asyncio.to_thread(_put_rows, rows_connection, folder, checked, report)
    except psycopg.OperationalError as error:
        raise InstallationAway(f"the database cannot be written: {error}; repeat the restore") from error


def _refuse_rows(connection: psycopg.Connection) -> None:
    for name in sorted(tables.KEPT - _MAY_HOLD_ROWS):
        query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(name))
        row = connection.execute(query).fetchone()
        if row is not None and row[0]:
            raise NotEmpty(
                f"the database is in use: {name} has rows; restore into a new database, because nothing is"
                " ever merged"
            )


async def _refuse_objects(store: ObjectStore, bucket: str) -> None:
    async for key, _ in store.iterate(""):
        raise NotEmpty(f"the bucket {bucket} is not empty: it holds {key}; restore into a new bucket")


# ---- objects --------------------------------------------------------------------------------------


async def _put_objects(folder: BackupFolder, checked: Checked, store: ObjectStore, report: Report) -> None:
    present = [entry for entry in checked.objects if entry.missing is None]
    total, done = sum(entry.size_bytes for entry in present), 0
    report("objects", 0, total)
    queue = iter(present)

    async def putter() -> None:
        nonlocal done
        for entry in queue:
            path = object_path(entry.sha256)
            await store.put_stream(entry.key, _chunks(folder, path), entry.size_bytes)
            # Read back: then neither the backup's disk nor the new store can have changed a byte unseen.
            if await store.hash(entry.key) != (entry.sha256, entry.size_bytes):
                raise BackupDamaged(
                    f"{entry.key} is not what it should be after it was stored; `kinora backup verify` says"
                    " whether the backup or the new store is at fault"
                )
            done += entry.size_bytes
            report("objects", done, total)

    await in_parallel(putter, _TRANSFERS)


async def _chunks(folder: BackupFolder, path: str) -> AsyncIterator[bytes]:
    with folder.read(path) as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk


# ---- rows -----------------------------------------------------------------------------------------


def _put_rows(
    connection: psycopg.Connection, folder: BackupFolder, checked: Checked, report: Report
) -> Restored:
    manifest = checked.manifest
    log_id = f"log_{uuid7().hex}"
    with connection.transaction():
        # The appenders' own lock: whoever started a service here meanwhile waits, and then it is refused.
        connection.execute(LOCK)
        _refuse_rows(connection)
        _put_events(connection, folder, manifest, report)
        _put_tables(connection, folder, manifest, report)
        _set_sequences(connection)
        connection.execute(
            "INSERT INTO kinora_log (log_id) VALUES (%s)"
            " ON CONFLICT (only_row) DO UPDATE SET log_id = excluded.log_id, created_at = now()",
            (log_id,),
        )
        connection.execute(
            "INSERT INTO kinora_log_predecessors (log_id, head, ended_at) VALUES (%s, %s, %s)",
            (manifest.log_id, manifest.head, manifest.created_at),
        )
    names = sum(entry.missing is None for entry in checked.objects)
    return Restored(log_id, manifest.log_id, manifest.head, manifest.events, names, manifest.objects.lost)


def _put_events(
    connection: psycopg.Connection, folder: BackupFolder, manifest: Manifest, report: Report
) -> None:
    def rows() -> Iterator[EventRow]:
        for done, event in enumerate(events_of(folder, manifest)):
            if done % _REPORT_EVERY == 0:
                report("events", done, manifest.events)
            yield event.row()

    try:
        with connection.cursor(row_factory=dict_row) as cursor:
            import_rows(cursor, rows())
    except ImportRefused as error:
        raise BackupDamaged(f"the events are not a log: {error}") from error
    report("events", manifest.events, manifest.events)


def _put_tables(
    connection: psycopg.Connection, folder: BackupFolder, manifest: Manifest, report: Report
) -> None:
    pairs = connection.execute(_FOREIGN_KEYS).fetchall()
    parts = _referenced_first(manifest.of_kind("table"), [(str(child), str(of)) for child, of in pairs])
    for done, part in enumerate(parts):
        report("credentials", done, len(parts))
        if part.table not in tables.KEPT:
            raise BackupDamaged(f"the backup holds a table {part.table} that this Kinora does not know")
        # An installation that was never used may have rows in the few tables that are filled at a start.
        connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(part.table)))
        query = sql.SQL("COPY {} ({}) FROM STDIN").format(
            sql.Identifier(part.table), sql.SQL(", ").join(map(sql.Identifier, part.columns))
        )
        try:
            with connection.cursor() as cursor, cursor.copy(query) as copy:
                for line in part_lines(folder, part):
                    copy.write(line)
        except (psycopg.errors.UndefinedColumn, psycopg.errors.DataError) as error:
            raise BackupDamaged(f"{part.path} does not fit this Kinora's tables: {error}") from error
    report("credentials", len(parts), len(parts))


def _referenced_first(parts: Sequence[Part], foreign_keys: Sequence[tuple[str, str]]) -> list[Part]:
    """Tables behind those that their foreign keys point to."""
    left = {str(part.table): part for part in parts}
    ordered: list[Part] = []
    while left:
        free = [name for name in left if not any(child == name and of in left for child, of in foreign_keys)]
        if not free:
            raise BackupDamaged(f"the tables {', '.join(sorted(left))} refer to one another in a circle")
        ordered += [left.pop(name) for name in free]
    return ordered


def _set_sequences(connection: psycopg.Connection) -> None:
    """Numbers go on behind the highest that is there."""
    for table, column, sequence in connection.execute(_SEQUENCES).fetchall():
        query = sql.SQL("SELECT setval({}, coalesce(max({}), 1), max({}) IS NOT NULL) FROM {}").format(
            sql.Literal(sequence), sql.Identifier(column), sql.Identifier(column), sql.Identifier(table)
        )
        connection.execute(query)
