"""Everything that the orchestrator says over NATS: the relay out, work and claims, reports in."""
