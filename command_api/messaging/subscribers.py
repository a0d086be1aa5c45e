"""Gives every NATS subscriber its consumer of EVENTS, and takes it away when the subscription ends.

A consumer dies with its stream, which is filled anew under another epoch when it lost something. So what
each subscriber has acknowledged is remembered as a position, and its next consumer begins behind it.
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from nats.js.api import ConsumerInfo, RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from command_api.eventlog.errors import LogUnavailable
from command_api.messaging.connection import UNREACHABLE
from command_api.messaging.follower import Follower
from command_api.messaging.stream_places import dropped_until, place_after
from command_api.messaging.subscriber_cursors import SubscriberCursors
from command_api.messaging.subscription_board import Subscriber
from command_api.messaging.topology import Topology
from schemas.subjects import EVENTS_STREAM, EVENTS_SUBJECTS, POSITION_HEADER

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""How often consumers are looked at: that they are there, and how far they have acknowledged."""
RETRY_SECONDS = 0.5
_OURS = re.compile(r"events-org_[0-9a-f]{32}-(sub_[0-9a-f]{32})\Z")


class Gaps(Protocol):
    """Somebody who tells of events that subscribers never got."""

    async def look(
        self, subscribers: Mapping[str, Subscriber], acknowledged: Mapping[str, int], dropped: int
    ) -> None:
        """Compare what everybody has acknowledged with the position up to which the stream dropped events."""


class Subscribers:
    """Keeps the consumers of EVENTS level with the subscriptions of the log."""

    def __init__(
        self, follower: Follower, topology: Topology, cursors: SubscriberCursors, gaps: Gaps
    ) -> None:
        self._follower = follower
        self._topology = topology
        self._cursors = cursors
        self._gaps = gaps
        self._changed = follower.changed()
        self._floors: dict[str, int] = {}
        """The last acknowledged sequence whose position is kept, by subscription."""
        self._settled: Mapping[str, Subscriber] = {}
        """Who there was when this last looked."""

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            pause = CHECK_SECONDS
            try:
                if not await self.settle():
                    pause = RETRY_SECONDS
            except (*UNREACHABLE, APIError, LogUnavailable) as error:
                logger.warning("subscribers: %s; looking again", str(error) or type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    # The board moves with every job, which is nothing to subscribers.
                    while self._follower.board.subscriptions.subscribers == self._settled:
                        self._changed.clear()
                        await self._changed.wait()

    async def settle(self) -> bool:
        """Look once; false when somebody's place is not in the stream yet."""
        wanted = self._settled = dict(self._follower.board.subscriptions.subscribers)
        # Before the acknowledgements are: what is acknowledged meanwhile is not taken for missed.
        dropped = await self._dropped()
        there = await self._consumers()
        for subscription_id in there.keys() - wanted.keys():
            await self._end(subscription_id, there[subscription_id].name)
        known = await self._cursors.all() if wanted.keys() - there.keys() else {}
        settled = True
        for subscription_id, subscriber in wanted.items():
            if (info := there.get(subscription_id)) is not None:
                await self._note(subscription_id, info)
            elif not await self._make(subscriber, known):
                settled = False
        await self._gaps.look(wanted, await self._cursors.all() if dropped else {}, dropped)
        return settled

    async def _dropped(self) -> int:
        try:
            return await dropped_until(self._topology.js)
        except NotFoundError:
            return 0  # the relay makes the stream within seconds

    async def _consumers(self) -> Mapping[str, ConsumerInfo]:
        """Those that are ours to keep, by subscription."""
        try:
            infos = await self._topology.consumers_of(EVENTS_STREAM)
        except NotFoundError:
            return {}  # the relay makes the stream within seconds
        return {found[1]: info for info in infos if (found := _OURS.match(info.name)) is not None}

    async def _make(self, subscriber: Subscriber, known: Mapping[str, int]) -> bool:
        position = max(subscriber.after, known.get(subscriber.subscription_id, 0))
        js = self._topology.js
        try:
            last = await js.get_last_msg(EVENTS_STREAM, EVENTS_SUBJECTS)
            # While the stream is being filled anew, what stands behind the position is still to come.
            if _position(last) < position:
                return False
            place = await place_after(js, position)
        except NotFoundError:
            return False
        await self._topology.make_subscriber(subscriber.durable, subscriber.subjects, place.sequence)
        self._floors.pop(subscriber.subscription_id, None)
        logger.info("subscribers: %s reads on behind position %d", subscriber.subscription_id, position)
        return True

    async def _note(self, subscription_id: str, info: ConsumerInfo) -> None:
        floor = info.ack_floor.stream_seq if info.ack_floor is not None else 0
        if not floor or self._floors.get(subscription_id) == floor:
            return
        try:
            message = await self._topology.js.get_msg(EVENTS_STREAM, floor)
        except NotFoundError:
            return  # before the first message of the stream, or it made room for newer ones
        await self._cursors.keep(subscription_id, _position(message))
        self._floors[subscription_id] = floor

    async def _end(self, subscription_id: str, durable: str) -> None:
        try:
            await self._topology.js.delete_consumer(EVENTS_STREAM, durable)
        except NotFoundError:
            logger.info("subscribers: the consumer of %s was gone already", subscription_id)
        await self._cursors.forget(subscription_id)
        self._floors.pop(subscription_id, None)
        logger.info("subscribers: %s has ended", subscription_id)


def _position(message: RawStreamMsg) -> int:
    return int((message.headers or {}).get(POSITION_HEADER, 0))
