"""What the control plane counts and measures, in Prometheus' terms; docs/observability.md explains each.

Labels name routes, commands, pools and the like, never an id: their number must not grow with use.
"""

from prometheus_client import Counter, Gauge, Histogram

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_QUEUE = ("pool", "lane", "priority")

# ---- the HTTP edge ----------------------------------------------------------------------------------

HTTP_SECONDS = Histogram(
    "kinora_http_request_seconds",
    "Time from a request's head to the end of its answer.",
    ("method", "route", "status"),
    buckets=_FAST,
)
HTTP_IN_PROGRESS = Gauge("kinora_http_requests_in_progress", "Requests that are not answered yet.")
FEED_CONNECTIONS = Gauge("kinora_feed_connections", "Open connections of the live feed.")
FEED_LAG = Gauge("kinora_feed_lag_positions", "How far the slowest subscription is behind the log's head.")

# ---- deciding and appending -------------------------------------------------------------------------

COMMANDS = Counter(
    "kinora_commands_total", "Commands by outcome: done, replayed, refused or failed.", ("command", "outcome")
)
APPEND_EVENTS = Histogram(
    "kinora_append_batch_events",
    "Events per transaction of the log.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
APPEND_SECONDS = Histogram(
    "kinora_append_seconds", "Time of one transaction of the log, its commit included.", buckets=_FAST
)

# ---- the orchestrator -------------------------------------------------------------------------------

ORCHESTRATOR_ACTIVE = Gauge("kinora_orchestrator_active", "1 in the one orchestrator that is active.")
RELAYED = Counter("kinora_relay_events_total", "Events published on the stream EVENTS.")
RELAY_LAG = Gauge("kinora_relay_lag_positions", "How far EVENTS is behind the log's head.")
EPOCH = Gauge(
    "kinora_relay_epoch",
    "The filling of EVENTS that is going on; a new one begins when the stream lost something.",
)
INBOX_REPORTS = Counter(
    "kinora_inbox_reports_total",
    "Reports of agents by what became of them: committed, repeated, early, refused, stray, put_aside.",
    ("outcome",),
)
INBOX_PENDING = Gauge("kinora_inbox_pending_reports", "Reports that wait on the stream REPORTS.")
DEAD_LETTERS = Gauge("kinora_dead_letters", "Messages that were put aside and wait for a person.")
QUEUE_DEPTH = Gauge("kinora_queue_depth", "Attempts that wait for an agent.", _QUEUE)
QUEUE_OLDEST = Gauge("kinora_queue_oldest_wait_seconds", "How long the first of them has waited.", _QUEUE)
RUNNING = Gauge("kinora_attempts_running", "Attempts that an agent holds.", ("pool", "lane"))
JOBS_ENDED = Counter("kinora_jobs_ended_total", "Jobs that succeeded, failed or were stopped.", ("outcome",))
ATTEMPTS_FAILED = Counter(
    "kinora_attempts_failed_total",
    "Training attempts that ended without a result: failed, released, declined or lease_expired.",
    ("reason",),
)
LEASE_EXPIRIES = Counter("kinora_lease_expiries_total", "Attempts taken back from silent agents.", ("lane",))
AGENTS = Gauge("kinora_agents", "Enrolled agents, online or offline.", ("pool", "state"))

# ---- webhooks ---------------------------------------------------------------------------------------

WEBHOOK_ATTEMPTS = Counter(
    "kinora_webhook_attempts_total",
    "Requests to receivers by what came of them: delivered, repeated_later or given_up.",
    ("outcome",),
)
WEBHOOK_SECONDS = Histogram(
    "kinora_webhook_attempt_seconds", "Time until a receiver answered, or was given up on.", buckets=_FAST
)
WEBHOOK_PENDING = Gauge("kinora_webhook_pending", "Deliveries that wait for their first or next attempt.")
WEBHOOK_OLDEST = Gauge("kinora_webhook_oldest_pending_seconds", "How long the first of them has waited.")
WEBHOOK_FAILING = Gauge("kinora_webhook_failing", "Webhooks whose last attempt failed.")
# ---- the auditor ------------------------------------------------------------------------------------

AUDITOR_ACTIVE = Gauge("kinora_auditor_active", "1 in the one auditor that is active.")
AUDIT_FINDINGS = Gauge(
    "kinora_audit_open_findings",
    "What was found to differ from the log and still does.",
    ("check", "subject"),
)
AUDIT_INCOMPARABLE = Gauge(
    "kinora_audit_incomparable",
    "1 while a read model cannot be compared with the log: its tables are missing or another release's.",
    ("view",),
)
AUDITED_STREAMS = Counter(
    "kinora_audited_aggregates_total",
    "Aggregates that were folded again, by what came of it: same, differs, or parked.",
    ("view", "outcome"),
)
AUDITED_MESSAGES = Counter(
    "kinora_audited_messages_total", "Messages of EVENTS that were compared with the log."
)
AUDIT_LAG = Gauge("kinora_audit_stream_lag_positions", "How far EVENTS was behind the log when looked at.")

# ---- proofs -----------------------------------------------------------------------------------------

MERKLE_HEAD = Gauge("kinora_merkle_head_position", "Position of the last signed head.")
MERKLE_CONTRADICTED = Gauge(
    "kinora_merkle_contradicted", "1 while the log is not what a signed head says; nothing is signed then."
)
MERKLE_FAULTS = Counter(
    "kinora_merkle_faults_total",
    "Events that were altered, dropped or inserted behind the service's back, each time they are seen.",
    ("how",),
)
