"""Every command's handler: the only table of them."""

from collections.abc import Mapping

from command_api.handlers import agent, dataset, finding, identity, job, model, reports, subscription
from command_api.handlers.base import Handler
from schemas.commands import Command

HANDLERS: Mapping[type[Command], Handler] = {
    **identity.HANDLERS,
    **dataset.HANDLERS,
    **model.HANDLERS,
    **agent.HANDLERS,
    **job.HANDLERS,
    **reports.HANDLERS,
    **subscription.HANDLERS,
    **finding.HANDLERS,
}
