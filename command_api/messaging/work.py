"""Keeps exactly one offer on WORK for every queued item, whatever happened to the stream."""

import asyncio
import logging
from collections.abc import Iterable
from datetime import UTC, datetime

from nats.js import JetStreamContext
from nats.js.errors import APIError

from command_api.messaging.board import Offer
from command_api.messaging.connection import UNREACHABLE
from command_api.messaging.follower import Follower
from command_api.messaging.pauses import Pauses
from command_api.messaging.topology import Topology
from schemas.subjects import WORK_STREAM, WORK_SUBJECTS, work_subject
from schemas.work import WorkOffer

logger = logging.getLogger(__name__)

STORE_FAILED = 10077
ALREADY_THERE = "maximum messages per subject exceeded"
AT_ONCE = 64


class WorkPublisher:
    """Derives WORK from the board. The stream may lose anything at any time: it is filled again."""

    def __init__(self, topology: Topology, follower: Follower, *, republish_seconds: float) -> None:
        self._topology = topology
        self._js: JetStreamContext = topology.js
        self._follower = follower
        self._changed = follower.changed()
        self._republish_seconds = republish_seconds
        self._published: dict[str, tuple[str, int]] = {}
        """Subject and attempt of every offer that was put on WORK."""
        self._later: dict[str, float] = {}
        """Queued items that nobody may take yet, and from when on somebody may, by the loop's clock."""
        self._pauses = Pauses()
        self._all_again = True

    def republish_soon(self) -> None:
        """After a reconnect the server may have lost everything."""
        self._all_again = True
        self._changed.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        clock = asyncio.get_running_loop().time
        emptied, republished = False, clock()
        while True:
            self._changed.clear()
            try:
                if not emptied:
                    # What is there was put there by somebody else, perhaps for attempts long gone.
                    await self._js.purge_stream(WORK_STREAM)
                    emptied = True
                if self._all_again or clock() - republished >= self._republish_seconds:
                    self._all_again = False
                    await self._topology.repair()
                    await self._sync(everything=True)
                    republished = clock()
                else:
                    await self._sync(everything=False)
            except (*UNREACHABLE, APIError) as error:
                logger.warning("work: NATS does not take offers (%s); trying again", error)
                self._all_again = True
                await asyncio.sleep(1)
                continue
            await self._wait(republished + self._republish_seconds - clock())

    async def _sync(self, *, everything: bool) -> None:
        board = self._follower.board
        for pool in board.pools():
            await self._topology.ensure_pool(*pool)
        now = asyncio.get_running_loop().time()
        looked_at = board.take_stirred() | {item_id for item_id, due in self._later.items() if due <= now}
        if everything:
            await self._forget_what_is_gone()
            looked_at |= {*self._published, *board.queued()}
            self._pauses.keep(frozenset(board.queued()))
        wanted = [offer for item_id in looked_at if (offer := await self._settle(item_id, now)) is not None]
        wanted.sort(key=lambda offer: offer.item.item_id)  # ids grow with time
        for chunk in _chunks(wanted):
            await asyncio.gather(*(self._publish(offer) for offer in chunk))

    async def _forget_what_is_gone(self) -> None:
        """One question to the server instead of one try per queued item."""
        info = await self._js.stream_info(WORK_STREAM, subjects_filter=WORK_SUBJECTS)
        there = info.state.subjects or {}
        self._published = {item_id: place for item_id, place in self._published.items() if place[0] in there}

    async def _settle(self, item_id: str, now: float) -> Offer | None:
        """Withdraw what was published for the item and is wrong; returns what is to be published."""
        offer, published = self._follower.board.offer(item_id), self._published.get(item_id)
        self._later.pop(item_id, None)
        if published is not None and (offer is None or published != _place(offer)):
            await self._js.purge_stream(WORK_STREAM, subject=published[0])
            del self._published[item_id]
            published = None
        if offer is None or published is not None:
            return None
        item = offer.item
        left = self._pauses.due_in(
            (item.item_id, item.attempt), item.not_before, item.pause, wall=datetime.now(UTC), monotonic=now
        )
        if left > 0:
            self._later[item_id] = now + left
            return None
        return offer

    async def _publish(self, offer: Offer) -> None:
        subject, attempt = _place(offer)
        body = WorkOffer(item_id=offer.item.item_id, attempt=attempt, traceparent=offer.item.traceparent)
        try:
            # No message id: within the duplicate window a purged offer could not be made again.
            await self._js.publish(subject, body.model_dump_json().encode(), stream=WORK_STREAM, timeout=5)
        except APIError as error:
            if error.err_code != STORE_FAILED or error.description != ALREADY_THERE:
                raise
        self._published[offer.item.item_id] = (subject, attempt)

    async def _wait(self, seconds: float) -> None:
        """Until the board moves, an offer becomes due, or everything is to be published again."""
        now = asyncio.get_running_loop().time()
        later = [due - now for due in self._later.values()]
        try:
            async with asyncio.timeout(max(0.01, min([seconds, *later]))):
                await self._changed.wait()
        except TimeoutError:
            return


def _place(offer: Offer) -> tuple[str, int]:
    item = offer.item
    subject = work_subject(item.organization_id, offer.pool, item.lane, item.priority, item.item_id)
    return subject, item.attempt


def _chunks(offers: list[Offer]) -> Iterable[list[Offer]]:
    return (offers[start : start + AT_ONCE] for start in range(0, len(offers), AT_ONCE))
