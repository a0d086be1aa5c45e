"""What a starting agent owes for its predecessor's attempts: their last reports, and giving them back."""

from collections.abc import Iterator

import structlog

from schemas.ids import ID_PATTERN
from schemas.work import HeldItem, Released, log_fields
from trainer_agent.connection import Connection
from trainer_agent.folders import WorkFolder
from trainer_agent.reporter import reporting
from trainer_agent.settings import AgentSettings
from trainer_agent.spool import Spool

log = structlog.get_logger()


def left_over(folder: WorkFolder) -> Iterator[HeldItem]:
    """The attempts that an earlier run of this agent held and had not finished reporting."""
    for path in sorted(folder.spools.iterdir()):
        item_id, _, attempt = path.name.partition(".")
        if ID_PATTERN.match(item_id) and attempt.isdigit():
            yield HeldItem(item_id=item_id, attempt=int(attempt))


async def give_back(
    connection: Connection, settings: AgentSettings, folder: WorkFolder, held: HeldItem
) -> None:
    """Send what was not sent, then `Released` unless the attempt had ended; see `spool` for why."""
    spool = Spool.load(folder.spool(held))
    async with reporting(connection, settings, held, spool) as reporter:
        if not spool.ended:
            log.info("attempt_given_back", **log_fields(held.item_id, held.attempt))
            await reporter.report(Released(reason="the agent was restarted"))
        await reporter.drained()
        spool.discard()
