"""Tells agents of a stop at once. A lost message costs nothing: the next heartbeat's answer says the same."""

import asyncio
import logging

from nats.aio.client import Client

from command_api.messaging.board import Item
from command_api.messaging.connection import UNREACHABLE
from command_api.messaging.follower import Follower
from schemas.envelope import Recorded
from schemas.events.dataset import DatasetDeleted
from schemas.events.job import JobFailed, JobStopped, JobStopRequested, LeaseExpired
from schemas.events.model import ModelDeleted
from schemas.subjects import control_subject
from schemas.work import Control, HeldItem

logger = logging.getLogger(__name__)


class Controls:
    """Publishes on `kinora.control.<organization>.<agent>` what the board just learned."""

    def __init__(self, client: Client, follower: Follower) -> None:
        self._client = client
        self._follower = follower
        self._waiting: asyncio.Queue[tuple[str, Control]] = asyncio.Queue()
        follower.listen(self._notice)

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            subject, control = await self._waiting.get()
            try:
                await self._client.publish(subject, control.model_dump_json().encode())
            except UNREACHABLE as error:
                logger.info("control: %s not told (%s); its heartbeat will", subject, error)

    def _notice(self, before: Item | None, recorded: Recorded) -> None:
        # What an agent reported itself, it knows.
        if before is None or before.agent_id is None or recorded.metadata.actor == before.agent_id:
            return
        match recorded.event:
            case JobStopRequested():
                desired = self._follower.board.items[before.item_id].desired
            case JobStopped() | JobFailed() | LeaseExpired() | DatasetDeleted() | ModelDeleted():
                desired = "abandon"
            case _:
                return
        held = HeldItem(item_id=before.item_id, attempt=before.attempt)
        subject = control_subject(before.organization_id, before.agent_id)
        self._waiting.put_nowait((subject, Control(held=held, desired=desired)))
