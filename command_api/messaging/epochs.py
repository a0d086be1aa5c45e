"""Numbers the fillings of EVENTS, so that a consumer can tell a refilled stream from a continued one."""

import psycopg


class Epochs:
    """The counter lives in the database, because the stream that lost everything cannot know it."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    async def begin(self) -> int:
        """The next epoch, from 1."""
        async with await psycopg.AsyncConnection.connect(self._conninfo) as connection:
            cursor = await connection.execute(
                "INSERT INTO kinora_relay_epoch (epoch) VALUES (1)"
                " ON CONFLICT (only_row) DO UPDATE SET epoch = kinora_relay_epoch.epoch + 1 RETURNING epoch"
            )
            row = await cursor.fetchone()
            return int(row[0]) if row is not None else 1
