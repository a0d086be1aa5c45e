"""Every event of the log. Importing this package fills the registry."""

from schemas.events import agent, dataset, finding, identity, job, model, subscription
from schemas.events.registry import REGISTRY, Event, Registry, UnknownEventType

__all__ = [
    "REGISTRY",
    "Event",
    "Registry",
    "UnknownEventType",
    "agent",
    "dataset",
    "finding",
    "identity",
    "job",
    "model",
    "subscription",
]
