"""Rows that have served their time. Whoever keeps such rows adds a sweep of them to `row_sweeps`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import LiteralString, Protocol

from psycopg.sql import SQL

from command_api.connected import connected
from command_api.messaging.follower import Follower
from command_api.objects import ObjectStore
from command_api.storage.alone import alone


class Sweep(Protocol):
    """Something that grows and may be cut back at any time."""

    @property
    def name(self) -> str:
        """As the outcome calls what it sweeps."""
        ...

    async def count(self) -> int:
        """How many would go."""
        ...

    async def sweep(self) -> int:
        """Let them go; returns how many."""
        ...


@dataclass(frozen=True, slots=True)
class RowSweep:
    """Rows of one table that a condition names."""

    name: str
    conninfo: str
    table: LiteralString
    condition: LiteralString
    values: tuple[float, ...] = ()
    """Of the condition's placeholders."""

    async def count(self) -> int:
        statement = SQL("SELECT count(*) FROM {} WHERE {}").format(SQL(self.table), SQL(self.condition))
        async with connected(self.conninfo) as connection:
            row = await (await connection.execute(statement, self.values)).fetchone()
        return int(row[0]) if row else 0

    async def sweep(self) -> int:
        statement = SQL("DELETE FROM {} WHERE {}").format(SQL(self.table), SQL(self.condition))
        async with connected(self.conninfo) as connection:
            return (await connection.execute(statement, self.values)).rowcount


def row_sweeps(conninfo: str) -> tuple[RowSweep, ...]:
    """A day after their end nobody needs to be told any more why something is not valid."""
    return (
        RowSweep(
            "sessions",
            conninfo,
            "kinora_refresh_families",
            "NOT EXISTS (SELECT FROM kinora_refresh_tokens t"
            " WHERE t.family_id = kinora_refresh_families.family_id"
            " AND t.expires_at > now() - interval '1 day')",
        ),
        RowSweep(
            "refresh_tokens", conninfo, "kinora_refresh_tokens", "expires_at < now() - interval '1 day'"
        ),
    )


def delivery_sweeps(conninfo: str, keep_days: float) -> tuple[RowSweep, ...]:
    """Outcomes of webhooks' deliveries that nobody asks about any more; what waits is kept."""
    return tuple(
        RowSweep(
            name, conninfo, table, "finished_at < now() - make_interval(secs => %s)", (keep_days * 86400,)
        )
        for name, table in (
            ("webhook_deliveries", "kinora_webhook_deliveries"),
            ("webhook_redeliveries", "kinora_webhook_redeliveries"),
        )
    )


@dataclass(frozen=True, slots=True)
class ReportCursors:
    """Of attempts that are over: their reports are dropped before anybody asks for the cursor."""

    conninfo: str
    follower: Follower
    name: str = "report_cursors"

    async def count(self) -> int:
        return len(await self._over())

    async def sweep(self) -> int:
        over = await self._over()
        async with connected(self.conninfo) as connection, connection.cursor() as cursor:
            await cursor.executemany(
                "DELETE FROM kinora_report_cursors WHERE item_id = %s AND attempt = %s", over
            )
        return len(over)

    async def _over(self) -> list[tuple[str, int]]:
        async with connected(self.conninfo) as connection:
            cursor = await connection.execute("SELECT item_id, attempt FROM kinora_report_cursors")
            rows: list[tuple[str, int]] = await cursor.fetchall()
        # After the rows were read: an attempt that has a row was begun before, so the board knows it.
        await self.follower.catch_up()
        items = self.follower.board.items
        return [row for row in rows if row[0] not in items or items[row[0]].attempt != row[1]]


@dataclass(frozen=True, slots=True)
class UploadSessions:
    """Sessions that nobody has used for long, with what was put for them and never completed.

    The dataset or model stays as it is: its next session is a new one, and what was filed is not sent again.
    """

    conninfo: str
    store: ObjectStore
    idle_seconds: float
    name: str = "upload_sessions"

    async def count(self) -> int:
        async with connected(self.conninfo) as connection:
            cursor = await connection.execute(
                "SELECT count(*) FROM kinora_uploads"
                " WHERE closed_at IS NOT NULL OR active_at < now() - make_interval(secs => %s)",
                (self.idle_seconds,),
            )
            row = await cursor.fetchone()
        return int(row[0]) if row else 0

    async def sweep(self) -> int:
        # Closed first: nobody goes on with a session whose parts are being thrown away.
        async with connected(self.conninfo) as connection:
            await connection.execute(
                "UPDATE kinora_uploads SET closed_at = now()"
                " WHERE closed_at IS NULL AND active_at < now() - make_interval(secs => %s)",
                (self.idle_seconds,),
            )
        swept = 0
        for upload_id, organization_id in await self._closed():
            await self._empty(upload_id, f"{organization_id}/uploads/{upload_id}/")
            async with connected(self.conninfo) as connection:
                await connection.execute("DELETE FROM kinora_upload_files WHERE upload_id = %s", (upload_id,))
                await connection.execute("DELETE FROM kinora_uploads WHERE upload_id = %s", (upload_id,))
            swept += 1
        return swept

    async def _closed(self) -> Iterable[tuple[str, str]]:
        async with connected(self.conninfo) as connection:
            cursor = await connection.execute(
                "SELECT upload_id, organization_id FROM kinora_uploads WHERE closed_at IS NOT NULL"
            )
            rows: list[tuple[str, str]] = await cursor.fetchall()
        return rows

    async def _empty(self, upload_id: str, prefix: str) -> None:
        async with connected(self.conninfo) as connection:
            cursor = await connection.execute(
                "SELECT sha256, multipart_id FROM kinora_upload_files"
                " WHERE upload_id = %s AND multipart_id IS NOT NULL",
                (upload_id,),
            )
            multiparts: list[tuple[str, str]] = await cursor.fetchall()
        async with alone(self.conninfo):
            for sha256, multipart_id in multiparts:
                await self.store.abort(f"{prefix}{sha256}", multipart_id)
            async for key, _ in self.store.iterate(prefix):
                await self.store.delete(key)
