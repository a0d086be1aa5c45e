"""How far every NATS subscriber has acknowledged, as a position: it outlives the consumer and its stream."""

import asyncio
from typing import Any, LiteralString

import psycopg

from command_api.eventlog.errors import LogUnavailable

_KEEP: LiteralString = """
INSERT INTO kinora_subscriber_cursors (subscription_id, position) VALUES (%s, %s)
ON CONFLICT (subscription_id) DO UPDATE
   SET position = GREATEST(kinora_subscriber_cursors.position, excluded.position), updated_at = now()
"""


class SubscriberCursors:
    """The table, as the one active orchestrator uses it."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    async def all(self) -> dict[str, int]:
        """Acknowledged position by subscription."""
        rows = await self._execute("SELECT subscription_id, position FROM kinora_subscriber_cursors")
        return {str(subscription_id): int(position) for subscription_id, position in rows}

    async def keep(self, subscription_id: str, position: int) -> None:
        """Note an acknowledgement; what was acknowledged once stays so."""
        await self._execute(_KEEP, (subscription_id, position))

    async def forget(self, subscription_id: str) -> None:
        await self._execute(
            "DELETE FROM kinora_subscriber_cursors WHERE subscription_id = %s", (subscription_id,)
        )

    async def _execute(
        self, statement: LiteralString, values: tuple[object, ...] = ()
    ) -> list[tuple[Any, ...]]:
        # In a thread, which closes its connection also when nobody waits for it any more.
        return await asyncio.to_thread(self._run, statement, values)

    def _run(self, statement: LiteralString, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        try:
            with psycopg.connect(self._conninfo, connect_timeout=3) as connection:
                cursor = connection.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError as error:
            raise LogUnavailable(f"subscribers' cursors cannot be read or written: {error}") from error
