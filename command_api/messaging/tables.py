"""The orchestrator's own tables beside the log: both are rebuilt or refilled, none is the truth."""

import psycopg

from command_api.eventlog.errors import LogUnavailable
from command_api.eventlog.tables import LOCK_ID

CREATE_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS kinora_report_cursors (
        item_id text NOT NULL,
        attempt integer NOT NULL,
        sequence bigint NOT NULL,
        PRIMARY KEY (item_id, attempt)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS kinora_relay_epoch (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        epoch bigint NOT NULL
    )
    """,
)


async def ensure_tables(conninfo: str) -> None:
    """Make what is missing.

    Raises:
        LogUnavailable: when the database does not answer.
    """
    try:
        async with await psycopg.AsyncConnection.connect(conninfo, connect_timeout=5) as connection:
            # IF NOT EXISTS alone does not keep two processes from making the same table at the same time.
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_ID,))
            for statement in CREATE_TABLES:
                await connection.execute(statement)
    except psycopg.OperationalError as error:
        raise LogUnavailable(f"the orchestrator's tables cannot be made: {error}") from error
