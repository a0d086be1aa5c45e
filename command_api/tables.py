"""Every table of the control plane, in one registry: how it is made, and what a backup does with it.

Whoever adds a table adds it here too. A table that is in no set is not made at a restore, and a test says so.
"""

from dataclasses import dataclass

import psycopg

from command_api import uploads
from command_api.audit import tables as audit
from command_api.connected import connected
from command_api.credentials import tables as credentials
from command_api.eventlog import tables as eventlog
from command_api.eventlog.errors import LogUnavailable
from command_api.feed import tickets
from command_api.imports import progress as import_progress
from command_api.messaging import tables as messaging
from command_api.storage import tables as storage
from command_api.transparency import tables as transparency
from command_api.webhooks import tables as webhooks


@dataclass(frozen=True, slots=True)
class TableSet:
    """The tables that one part of the control plane makes."""

    statements: tuple[str, ...]
    kept: tuple[str, ...] = ()
    """Nothing else knows what stands in them: backups hold their rows."""
    derived: tuple[str, ...] = ()
    """Filled again by themselves: no backup holds them."""


TABLE_SETS: tuple[TableSet, ...] = (
    TableSet(
        eventlog.CREATE_TABLES,
        kept=("kinora_events", "kinora_commands", "kinora_log", "kinora_log_predecessors"),
    ),
    TableSet(
        credentials.CREATE_TABLES,
        kept=(
            "kinora_passwords",
            "kinora_person_keys",
            "kinora_unique_names",
            "kinora_memberships",
            "kinora_operators",
            "kinora_refresh_families",
            "kinora_refresh_tokens",
            "kinora_secrets",
            "kinora_enrolment_tokens",
            "kinora_subscriptions",
        ),
    ),
    TableSet((tickets.TABLE,), derived=("kinora_feed_tickets",)),
    TableSet((import_progress.TABLE,), derived=("kinora_import_progress",)),
    TableSet((uploads.TABLES,), kept=("kinora_uploads", "kinora_upload_files")),
    TableSet(storage.CREATE_TABLES, derived=("kinora_collections",)),
    # Kept, because a webhook without its place would be sent everything again.
    TableSet(webhooks.CREATE_TABLES, kept=webhooks.NAMES),
    TableSet(audit.CREATE_TABLES, derived=("kinora_audit_sweeps",)),
    TableSet(
        messaging.CREATE_TABLES,
        kept=("kinora_report_cursors", "kinora_relay_epochs", "kinora_subscriber_cursors"),
    ),
    TableSet(
        transparency.CREATE_TABLES,
        kept=("kinora_audit_keys", "kinora_heads", "kinora_head_trees"),
        derived=("kinora_merkle_checkpoint", "kinora_merkle_trees", "kinora_merkle_tiles"),
    ),
)

KEPT: frozenset[str] = frozenset(name for tables in TABLE_SETS for name in tables.kept)
DERIVED: frozenset[str] = frozenset(name for tables in TABLE_SETS for name in tables.derived)


async def create_tables(connection: psycopg.AsyncConnection) -> None:
    """Make what is missing, in a transaction of its own; several processes may do so at once."""
    async with connection.transaction():
        # IF NOT EXISTS alone does not keep two processes from making the same table at the same time.
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (eventlog.LOCK_ID,))
        for tables in TABLE_SETS:
            for statement in tables.statements:
                await connection.execute(statement)


async def ensure_tables(conninfo: str) -> None:
    """Make what is missing, over a connection of its own.

    Raises:
        LogUnavailable: when the database does not answer.
    """
    try:
        async with connected(conninfo, connect_timeout=5, autocommit=True) as connection:
            await create_tables(connection)
    except psycopg.OperationalError as error:
        raise LogUnavailable(f"the tables cannot be made: {error}") from error
