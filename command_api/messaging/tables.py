"""The orchestrator's own tables: how far reports are committed, EVENTS filled and subscribers have read."""

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
    CREATE TABLE IF NOT EXISTS kinora_relay_epochs (
        epoch bigint PRIMARY KEY,
        reason text NOT NULL,
        began_at timestamptz NOT NULL DEFAULT now(),
        sequence bigint NOT NULL,
        position bigint NOT NULL DEFAULT 0,
        broken_because text
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS kinora_subscriber_cursors (
        subscription_id text PRIMARY KEY,
        position bigint NOT NULL,
        updated_at timestamptz NOT NULL DEFAULT now()
    )
    """,
)
