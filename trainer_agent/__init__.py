"""One process per node: claims work, runs an engine, reports. NATS and HTTPS only."""
