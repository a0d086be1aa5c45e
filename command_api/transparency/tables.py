"""Tables of trees and heads. Trees are made again from the log; what was signed is kept for good."""

CREATE_TABLES: tuple[str, ...] = (
    """
    CREATE TABLE IF NOT EXISTS kinora_merkle_checkpoint (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        position bigint NOT NULL DEFAULT 0,
        checked_position bigint NOT NULL DEFAULT 0,
        stored_head bigint NOT NULL DEFAULT 0,
        announced_head bigint NOT NULL DEFAULT 0
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS kinora_merkle_trees (
        organization text COLLATE "C" PRIMARY KEY,
        size bigint NOT NULL,
        root bytea NOT NULL
    )
    """,
    # Up to 256 hashes a row, see `schemas.merkle.Tile`; positions stand beside the leaves, 8 bytes each.
    """
    CREATE TABLE IF NOT EXISTS kinora_merkle_tiles (
        organization text COLLATE "C" NOT NULL,
        level smallint NOT NULL,
        number bigint NOT NULL,
        hashes bytea NOT NULL,
        positions bytea,
        first_position bigint,
        last_position bigint,
        PRIMARY KEY (organization, level, number)
    )
    """,
    # Hashes cannot be compressed.
    "ALTER TABLE kinora_merkle_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL",
    """
    CREATE INDEX IF NOT EXISTS kinora_merkle_tiles_positions_idx
        ON kinora_merkle_tiles (organization, first_position) WHERE level = 0
    """,
    """
    CREATE INDEX IF NOT EXISTS kinora_merkle_tiles_last_idx
        ON kinora_merkle_tiles (last_position) WHERE level = 0
    """,
    """
    CREATE TABLE IF NOT EXISTS kinora_audit_keys (
        key_id text PRIMARY KEY,
        public_key bytea NOT NULL,
        since timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS kinora_heads (
        number bigint PRIMARY KEY,
        position bigint NOT NULL,
        document bytea NOT NULL,
        signed_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX IF NOT EXISTS kinora_heads_position_idx ON kinora_heads (position)",
    # Of each head, the trees that had grown since the one before.
    """
    CREATE TABLE IF NOT EXISTS kinora_head_trees (
        organization text COLLATE "C" NOT NULL,
        number bigint NOT NULL REFERENCES kinora_heads,
        size bigint NOT NULL,
        root bytea NOT NULL,
        PRIMARY KEY (organization, number)
    )
    """,
    "CREATE INDEX IF NOT EXISTS kinora_head_trees_number_idx ON kinora_head_trees (number)",
)
