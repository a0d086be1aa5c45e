"""The orchestrator's own tables: how far reports are committed, and how often EVENTS was filled."""

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
