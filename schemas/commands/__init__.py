"""Every command: a request that may be refused. Handlers in `command_api.handlers` decide them."""

from schemas.commands import agent, dataset, finding, identity, job, model, subscription
from schemas.commands.base import Command

__all__ = ["Command", "agent", "dataset", "finding", "identity", "job", "model", "subscription"]
