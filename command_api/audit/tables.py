"""How far the auditor's sweeps are, so that a restart goes on instead of beginning again."""

CREATE_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS kinora_audit_sweeps (
        sweep text PRIMARY KEY,
        cursor text NOT NULL,
        compared bigint NOT NULL,
        rounds bigint NOT NULL,
        began_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        finished_at timestamptz
    )
    """,
)
