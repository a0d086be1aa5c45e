"""What an agent counts and measures, in Prometheus' terms; docs/observability.md explains each."""

from prometheus_client import Counter, Gauge, Histogram

STEP_SECONDS = Histogram(
    "kinora_training_step_seconds",
    "Time of one optimizer step, as the engine measured it.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
TRAINED_TOKENS = Counter("kinora_trained_tokens_total", "Tokens of the optimizer steps taken.")
ATTEMPTS = Counter("kinora_agent_attempts_total", "Attempts by kind and ending.", ("kind", "ending"))
WORKING = Gauge("kinora_agent_working", "1 while an attempt is at hand.")
STAGED_BYTES = Counter(
    "kinora_agent_staged_bytes_total",
    "Inputs of attempts, downloaded or from the cache.",
    ("source",),
)
STORED_BYTES = Counter("kinora_agent_stored_bytes_total", "Outputs put into the object store.", ("purpose",))
SPOOL_REPORTS = Gauge("kinora_agent_spool_reports", "Reports that the control plane has not stored yet.")
CONNECTED = Gauge("kinora_agent_connected", "1 while NATS can be reached.")
UTILISATION = Gauge("kinora_utilisation_ratio", "How busy a device of this node is.", ("device",))
MEMORY_USED = Gauge("kinora_memory_used_bytes", "Memory of a device that is taken.", ("device",))
MEMORY_TOTAL = Gauge("kinora_memory_bytes", "Memory that a device has.", ("device",))
POWER = Gauge("kinora_power_watts", "Power that a device draws, where it says so.", ("device",))
