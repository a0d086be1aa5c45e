"""How far each webhook is, and every delivery with its attempts: rows, which a rebuild never touches.

A delivery stands in one row, however often it is repeated: `webhook-id` is the id of its event, so whoever
receives it twice can tell.
"""

CREATE_TABLES: tuple[str, ...] = (
    # Everything up to `position` has a delivery or is not wanted. `disabling`: why to give the receiver up.
    """
    CREATE TABLE IF NOT EXISTS kinora_webhooks (
        subscription_id text PRIMARY KEY,
        organization_id text NOT NULL,
        log_id text NOT NULL,
        position bigint NOT NULL,
        enabled_version integer NOT NULL,
        failing_since timestamptz,
        failures integer NOT NULL DEFAULT 0,
        last_delivered_at timestamptz,
        disabling text
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS kinora_webhook_redeliveries (
        redelivery_id text PRIMARY KEY,
        subscription_id text NOT NULL,
        organization_id text NOT NULL,
        from_position bigint NOT NULL,
        until_position bigint NOT NULL,
        position bigint NOT NULL,
        requested_by text NOT NULL,
        created_at timestamptz NOT NULL,
        finished_at timestamptz
    )
    """,
    """
    CREATE INDEX IF NOT EXISTS kinora_webhook_redeliveries_open_idx
        ON kinora_webhook_redeliveries (subscription_id) WHERE finished_at IS NULL
    """,
    # A test's event stands in no log: it has no position, and its body is kept here. `window_from`: since
    # when the present attempts are counted, which are `tries`; every attempt ever made is in `attempts`.
    """
    CREATE TABLE IF NOT EXISTS kinora_webhook_deliveries (
        delivery_id text PRIMARY KEY,
        subscription_id text NOT NULL,
        organization_id text NOT NULL,
        position bigint,
        event_id text NOT NULL,
        event_type text NOT NULL,
        stream_id text NOT NULL,
        body bytea,
        status text NOT NULL CHECK (status IN ('pending', 'delivered', 'failed')),
        due_at timestamptz NOT NULL,
        window_from timestamptz,
        tries integer NOT NULL DEFAULT 0,
        attempts jsonb NOT NULL DEFAULT '[]',
        created_at timestamptz NOT NULL,
        finished_at timestamptz,
        UNIQUE (subscription_id, position)
    )
    """,
    """
    CREATE INDEX IF NOT EXISTS kinora_webhook_deliveries_due_idx
        ON kinora_webhook_deliveries (subscription_id, due_at, position) WHERE status = 'pending'
    """,
    """
    CREATE INDEX IF NOT EXISTS kinora_webhook_deliveries_newest_idx
        ON kinora_webhook_deliveries (subscription_id, delivery_id)
    """,
    # The few that people look for among the many that went well.
    """
    CREATE INDEX IF NOT EXISTS kinora_webhook_deliveries_unwell_idx
        ON kinora_webhook_deliveries (subscription_id, delivery_id) WHERE status <> 'delivered'
    """,
    """
    CREATE INDEX IF NOT EXISTS kinora_webhook_deliveries_finished_idx
        ON kinora_webhook_deliveries (finished_at) WHERE finished_at IS NOT NULL
    """,
)

NAMES = ("kinora_webhooks", "kinora_webhook_redeliveries", "kinora_webhook_deliveries")
