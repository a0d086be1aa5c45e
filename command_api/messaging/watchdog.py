"""Notices a starving inbox: a pull loop whose consumer is gone waits for ever and says nothing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from nats.js.errors import APIError, NotFoundError

from command_api.messaging.connection import UNREACHABLE
from command_api.messaging.inbox import Inbox
from command_api.messaging.topology import Topology
from schemas.subjects import INBOX_DURABLE, REPORTS_STREAM

logger = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
STARVING_CHECKS = 10


class Watchdog:
    """Makes the consumer again when it was deleted, and the subscription when it stopped fetching."""

    def __init__(self, topology: Topology, inbox: Inbox, resubscribe: Callable[[], Awaitable[None]]) -> None:
        self._topology = topology
        self._inbox = inbox
        self._resubscribe = resubscribe
        self._batches = -1
        self._hungry = 0

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._check()
            except NotFoundError:
                logger.warning("watchdog: the consumer of %s is gone; making it again", REPORTS_STREAM)
                await self._make_again()
            except (*UNREACHABLE, APIError) as error:
                logger.info("watchdog: cannot look (%s)", str(error) or type(error).__name__)

    async def _check(self) -> None:
        info = await self._topology.js.consumer_info(REPORTS_STREAM, INBOX_DURABLE)
        starving = bool(info.num_pending) and self._inbox.batches == self._batches and not self._inbox.taking
        self._batches = self._inbox.batches
        self._hungry = self._hungry + 1 if starving else 0
        if self._hungry >= STARVING_CHECKS:
            logger.error("watchdog: %d reports wait and none is taken; subscribing again", info.num_pending)
            self._hungry = 0
            await self._resubscribe()

    async def _make_again(self) -> None:
        try:
            await self._topology.ensure_streams()
        except (*UNREACHABLE, APIError) as error:
            logger.warning("watchdog: %s", str(error) or type(error).__name__)
