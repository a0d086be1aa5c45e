"""The credential tables, as whole statements. Their rows can be deleted, which the log's never are."""

from command_api.credentials import enrolment, operators, subscriptions

CREATE_TABLES: tuple[str, ...] = (
    """
    CREATE TABLE IF NOT EXISTS kinora_passwords (
        user_id text PRIMARY KEY,
        hash text NOT NULL,
        updated_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    # Deleting a row makes the person's fields unreadable in every copy of the log.
    """
    CREATE TABLE IF NOT EXISTS kinora_person_keys (
        user_id text PRIMARY KEY,
        wrapped_key bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS kinora_unique_names (
        kind text NOT NULL CHECK (kind IN ('username', 'email')),
        digest bytea NOT NULL,
        user_id text NOT NULL,
        PRIMARY KEY (kind, digest)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS kinora_memberships (
        user_id text NOT NULL,
        organization_id text NOT NULL,
        workspace_id text NOT NULL,
        role text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (user_id, organization_id, workspace_id)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS kinora_refresh_families (
        family_id text PRIMARY KEY,
        user_id text NOT NULL,
        organization_id text NOT NULL,
        workspace_id text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        revoked_at timestamptz
    )
    """,
    "CREATE INDEX IF NOT EXISTS kinora_refresh_families_user_idx ON kinora_refresh_families (user_id)",
    """
    CREATE TABLE IF NOT EXISTS kinora_refresh_tokens (
        token_hash bytea PRIMARY KEY,
        family_id text NOT NULL REFERENCES kinora_refresh_families ON DELETE CASCADE,
        expires_at timestamptz NOT NULL,
        used_at timestamptz
    )
    """,
    "CREATE INDEX IF NOT EXISTS kinora_refresh_tokens_family_idx ON kinora_refresh_tokens (family_id)",
    operators.CREATE_TABLE,
    operators.APPOINT_FIRST,
    """
    CREATE TABLE IF NOT EXISTS kinora_secrets (
        organization_id text NOT NULL,
        workspace_id text NOT NULL,
        name text NOT NULL,
        kind text NOT NULL,
        sealed bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        last_used_at timestamptz,
        PRIMARY KEY (organization_id, workspace_id, name)
    )
    """,
    enrolment.CREATE_TABLE,
    enrolment.CREATE_INDEX,
    subscriptions.CREATE_TABLE,
    subscriptions.CREATE_INDEX,
)
