"""What the read side counts and measures, in Prometheus' terms; docs/observability.md explains each."""

from prometheus_client import Counter, Gauge

LAG = Gauge("kinora_projection_lag_positions", "How far a view is behind the log's head.", ("view",))
PARKED = Gauge("kinora_projection_parked_streams", "Streams that a view leaves alone.", ("view",))
EVENTS = Counter("kinora_projection_events_total", "Events that a view has folded.", ("view",))
