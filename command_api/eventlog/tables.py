"""Every table of the log, as whole statements."""

EVENTS = "kinora_events"
"""Also the NOTIFY channel of every append."""

LOCK_ID = 0x6B696E6F7261
"""Advisory lock under which tables are made, so that processes may start at the same time."""

MEASUREMENTS = ("kinora.job.progressed", "kinora.job.log_segment_stored")
"""By far the most events; whoever follows lifecycles skips them by an index of all others."""

NO_MEASUREMENT = f"topic <> ALL (ARRAY[{', '.join(repr(topic) for topic in MEASUREMENTS)}])"

CREATE_TABLES: tuple[str, ...] = (
    # The first five columns are the eventsourcing library's. The rest repeat fields of `state` that queries
    # filter by. Rows are only ever inserted, so vacuum has nothing to reclaim but still has to freeze and to
    # maintain the visibility map: the insert threshold does that in steps of bounded size.
    """
    CREATE TABLE IF NOT EXISTS kinora_events (
        originator_id uuid NOT NULL,
        originator_version bigint NOT NULL,
        topic text NOT NULL,
        state bytea NOT NULL,
        notification_id bigserial NOT NULL,
        event_id text NOT NULL,
        stream_id text NOT NULL,
        organization_id text,
        workspace_id text,
        actor text NOT NULL,
        correlation_id text NOT NULL,
        causation_id text NOT NULL,
        recorded_at timestamptz NOT NULL,
        PRIMARY KEY (originator_id, originator_version)
    ) WITH (
        autovacuum_vacuum_insert_threshold = 100000,
        autovacuum_vacuum_insert_scale_factor = 0.05,
        autovacuum_analyze_threshold = 1000,
        autovacuum_analyze_scale_factor = 0.02
    )
    """,
    "CREATE UNIQUE INDEX IF NOT EXISTS kinora_events_notification_id_idx ON kinora_events (notification_id)",
    "CREATE UNIQUE INDEX IF NOT EXISTS kinora_events_event_id_idx ON kinora_events (event_id)",
    """
    CREATE INDEX IF NOT EXISTS kinora_events_organization_idx
        ON kinora_events (organization_id, notification_id)
    """,
    f"""
    CREATE INDEX IF NOT EXISTS kinora_events_lifecycle_idx
        ON kinora_events (notification_id) WHERE {NO_MEASUREMENT}
    """,
    # What came of an event; most events follow from a command or report, and are not in it.
    """
    CREATE INDEX IF NOT EXISTS kinora_events_effects_idx
        ON kinora_events (causation_id) WHERE left(causation_id, 4) = 'evt_'
    """,
    # A command's events are positions first_position .. position; both are the head where it made none.
    """
    CREATE TABLE IF NOT EXISTS kinora_commands (
        principal text NOT NULL,
        key text NOT NULL,
        request_hmac bytea NOT NULL,
        stream_id text,
        first_position bigint NOT NULL,
        position bigint NOT NULL,
        event_count integer NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (principal, key)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS kinora_log (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        log_id text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    # The logs that this one continues: a restore gives the log a new id and remembers the one before.
    """
    CREATE TABLE IF NOT EXISTS kinora_log_predecessors (
        log_id text PRIMARY KEY,
        head bigint NOT NULL,
        ended_at timestamptz NOT NULL DEFAULT now()
    )
    """,
)

NAME_LOG = "INSERT INTO kinora_log (log_id) VALUES (%s) ON CONFLICT (only_row) DO NOTHING"
