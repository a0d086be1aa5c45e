"""Collections that were asked for, and what became of them."""

CREATE_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS kinora_collections (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        dry_run boolean NOT NULL,
        requested_by text NOT NULL,
        requested_at timestamptz NOT NULL DEFAULT now(),
        state text NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'running', 'done', 'failed')),
        seen bigint NOT NULL DEFAULT 0,
        outcome jsonb,
        error text,
        started_at timestamptz,
        finished_at timestamptz
    )
    """,
    """
    CREATE UNIQUE INDEX IF NOT EXISTS kinora_collections_open
        ON kinora_collections (dry_run) WHERE state IN ('requested', 'running')
    """,
)
