"""A model of nats-server with JetStream as far as our requests can tell the difference."""
