"""Delivers events to webhooks: enqueues what the log has behind each one's position, and sends what is due.

Every event that a webhook wants becomes a row in the same transaction as the webhook's new position; a row is
sent until it is delivered or given up, and its outcome is written after the answer came. So a crash anywhere
repeats at most what was under way, with the same `webhook-id`. Events of one stream go one after the other;
one that fails waits for its next attempt and lets later ones pass.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import psycopg
from psycopg_pool import PoolTimeout

from command_api import metrics
from command_api.credentials.subscriptions import WebhookSecrets
from command_api.eventlog.errors import LogUnavailable
from command_api.eventlog.log import EventLog
from command_api.handlers.base import Context
from command_api.handlers.bus import CommandBus
from command_api.messaging.together import end
from command_api.settings import WebhookSettings
from command_api.webhooks.ledger import Attempt, Enqueued, Ledger, Noted, Parcel, Place, Span
from command_api.webhooks.receivers import Receiver, Receivers
from command_api.webhooks.schedule import (
    Again,
    Answer,
    Delivered,
    GivenUp,
    NoAnswer,
    Verdict,
    Waiting,
    choose,
    judge,
)
from command_api.webhooks.signing import signed_headers
from schemas.commands.subscription import DisableSubscription
from schemas.envelope import public_bytes
from schemas.errors import KinoraError
from schemas.pins import pinned

logger = logging.getLogger(__name__)

PAGE = 500
RETRY_SECONDS = 1.0
PAUSE_SECONDS = 0.05
"""Between looks: what a busy log appends meanwhile costs one of them together."""
COUNT_SECONDS = 5.0

_DETAILS = {
    "gone": "the receiver answered 410 Gone",
    "failing": "the receiver took nothing for three days",
}


class Post(Protocol):
    """What sends: see `sender.Sender.post`."""

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer | NoAnswer: ...


class Webhooks:
    """The orchestrator's part that delivers; one is active at a time."""

    def __init__(
        self,
        log: EventLog,
        ledger: Ledger,
        secrets: WebhookSecrets,
        post: Post,
        bus: CommandBus,
        settings: WebhookSettings,
        wake: asyncio.Event,
        *,
        clock: Callable[[], datetime],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._log = log
        self._ledger = ledger
        self._secrets = secrets
        self._post = post
        self._bus = bus
        self._settings = settings
        self._wake = wake
        self._clock = clock
        self._jitter = jitter
        self._receivers = Receivers(log)
        self._any_places = True  # unless it turns out otherwise
        self._under_way: dict[str, Waiting] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Deliver until cancelled. `wake` has to be set now and then, for what falls due by itself."""
        counting = asyncio.create_task(self._count(), name="webhooks-count")
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                try:
                    await self.look()
                    await asyncio.sleep(PAUSE_SECONDS)
                except (LogUnavailable, psycopg.OperationalError, PoolTimeout) as error:
                    logger.warning("webhooks: %s; trying again", error)
                    await asyncio.sleep(RETRY_SECONDS)
                    self._wake.set()
        finally:
            await end([counting, *self._tasks])

    async def look(self) -> int:
        """Enqueue what is new and start sending what is due; returns how many were started."""
        head = await asyncio.to_thread(self._log.head)
        await self._receivers.catch_up(head)
        if not self._receivers.found and not self._any_places:
            return 0
        places = await self._settled(head)
        self._any_places = bool(places)
        await self._enqueue(places, head)
        return await self._start()

    async def finish(self) -> None:
        """Wait for what is under way.

        Raises:
            Exception: what one of them failed with.
        """
        while self._tasks:
            await asyncio.gather(*self._tasks)

    # ---- webhooks that came, went or were given up ---------------------------------------------------

    async def _settled(self, head: int) -> dict[str, Place]:
        """Every webhook's place, after what its receiver's state asks for."""
        places, receivers = await self._ledger.places(), self._receivers.found
        if any(place.log_id != self._log.log_id for place in places.values()):
            moved = await self._ledger.start_behind(self._log.log_id, head, self._clock())
            logger.warning(
                "the log was restored: %d webhooks go on with what is new; what they may have missed is sent"
                " by `kinora subscriptions redeliver`",
                moved,
            )
            places = await self._ledger.places()
        changed = False
        for name, receiver in receivers.items():
            changed |= await self._settle(receiver, places.get(name))
        if gone := places.keys() - receivers.keys():
            await self._ledger.forget(gone)
            changed = True
        return await self._ledger.places() if changed else places

    async def _settle(self, receiver: Receiver, place: Place | None) -> bool:
        """Whether the place was changed."""
        if place is None:
            await self._ledger.begin(receiver, self._log.log_id)
        elif place.enabled_version != receiver.enabled_version:
            await self._ledger.go_on(receiver, self._clock())
        elif receiver.is_active and place.disabling is not None:
            await self._disable(receiver, place.disabling)
        elif not receiver.is_active and (place.is_failing or place.disabling is not None):
            await self._ledger.rest(receiver.subscription_id)
        else:
            return False
        return True

    async def _disable(self, receiver: Receiver, why: str) -> None:
        logger.warning("webhook %s is disabled: %s", receiver.subscription_id, _DETAILS[why])
        context = Context.system(
            "webhooks", organization_id=receiver.organization_id, workspace_id=receiver.workspace_id
        )
        command = DisableSubscription(
            subscription_id=receiver.subscription_id,
            reason="gone" if why == "gone" else "failing",
            detail=_DETAILS[why],
        )
        try:
            outcome = await self._bus.execute(command, context)
        except LogUnavailable:
            raise
        except KinoraError as error:
            logger.info("webhook %s: %s", receiver.subscription_id, error)  # deleted meanwhile
        else:
            await self._receivers.catch_up(outcome.position)

    # ---- from the log into rows ------------------------------------------------------------------------

    async def _enqueue(self, places: Mapping[str, Place], head: int) -> None:
        active = [receiver for receiver in self._receivers.found.values() if receiver.is_active]
        behind: dict[int, list[Receiver]] = {}
        for receiver in active:
            place = places.get(receiver.subscription_id)
            if place is not None and place.position < head:
                behind.setdefault(place.position, []).append(receiver)
        # Those that are level with one another, which is nearly always all, cost one query together.
        for position, receivers in behind.items():
            await self._enqueue_together(receivers, position, head)
        if not active:
            return
        by_id = {receiver.subscription_id: receiver for receiver in active}
        for span in await self._ledger.spans():
            if span.subscription_id in by_id:
                receivers = [by_id[span.subscription_id]]
                await self._enqueue_together(receivers, span.position, span.until_position, span)

    async def _enqueue_together(
        self, receivers: Sequence[Receiver], position: int, until: int, span: Span | None = None
    ) -> None:
        """Pages up to `until`, until none of the receivers has room for more."""
        pending = await self._ledger.pending([receiver.subscription_id for receiver in receivers])
        room = {
            receiver.subscription_id: self._settings.pending_each - pending.get(receiver.subscription_id, 0)
            for receiver in receivers
        }
        going = [receiver for receiver in receivers if room[receiver.subscription_id] > 0]
        while going and position < until:
            page = await self._ledger.events(
                position, until, {each.organization_id for each in going}, _types(going), PAGE
            )
            reached = page[-1].position if len(page) == PAGE else until
            shares = [_share(receiver, page, room, reached, span) for receiver in going]
            await self._ledger.enqueue(shares, self._clock())
            going = [each for each in going if room[each.subscription_id] > 0]
            position = reached

    # ---- from rows to receivers ------------------------------------------------------------------------

    async def _start(self) -> int:
        receivers = self._receivers.found
        if not receivers or len(self._under_way) >= self._settings.at_once:
            return 0
        due = await self._ledger.due(list(receivers.values()), self._clock())
        chosen = choose(
            due,
            self._under_way,
            at_once=self._settings.at_once,
            at_once_each=self._settings.at_once_each,
        )
        if not chosen:
            return 0
        waiting = {each.delivery_id: each for each in chosen}
        parcels = await self._ledger.parcels(list(waiting))
        for parcel in parcels:
            self._under_way[parcel.delivery_id] = waiting[parcel.delivery_id]
            task = asyncio.create_task(
                self._carry(parcel, receivers[parcel.subscription_id]), name=f"webhook {parcel.delivery_id}"
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(parcels)

    async def _carry(self, parcel: Parcel, receiver: Receiver) -> None:
        try:
            await self._ledger.record(parcel, await self._attempt(parcel, receiver))
        except (psycopg.OperationalError, PoolTimeout) as error:
            # It stays pending and is sent again. Not at once, because the database is away.
            logger.warning("webhook delivery %s cannot be recorded: %s", parcel.delivery_id, error)
            await asyncio.sleep(RETRY_SECONDS)
        except Exception:  # the task's door: the other deliveries go on
            logger.exception("webhook delivery %s broke off", parcel.delivery_id)
            await asyncio.sleep(RETRY_SECONDS)
        finally:
            del self._under_way[parcel.delivery_id]
            self._wake.set()

    async def _attempt(self, parcel: Parcel, receiver: Receiver) -> Attempt:
        attempted_at = self._clock()
        answer = await self._sent(parcel, receiver, attempted_at)
        ended_at = self._clock()
        metrics.WEBHOOK_SECONDS.observe((ended_at - attempted_at).total_seconds())
        verdict = _verdict(parcel, answer, attempted_at, ended_at, self._jitter())
        metrics.WEBHOOK_ATTEMPTS.labels(_OUTCOMES[type(verdict)]).inc()
        return Attempt(attempted_at, ended_at, answer, verdict)

    async def _sent(self, parcel: Parcel, receiver: Receiver, now: datetime) -> Answer | NoAnswer:
        body = self._body(parcel, receiver)
        try:
            async with self._ledger.pool.connection() as connection:
                secrets = await self._secrets.signing(connection, receiver.subscription_id, now)
        except KinoraError as error:
            return NoAnswer("unsigned", error.message)
        if not secrets:
            return NoAnswer("unsigned", "the subscription has no signing secret any more")
        return await self._post(receiver.url, body, signed_headers(parcel.event_id, body, secrets, now))

    def _body(self, parcel: Parcel, receiver: Receiver) -> bytes:
        if parcel.position is None or parcel.state is None:
            return parcel.body or b""
        public = public_bytes(parcel.position, self._log.log_id, parcel.state)
        return pinned(public, parcel.event_type, receiver.pinned)

    # ---- what people see of it -------------------------------------------------------------------------

    async def _count(self) -> None:
        while True:
            try:
                backlog = await self._ledger.backlog()
            except (psycopg.OperationalError, PoolTimeout) as error:
                logger.info("webhooks cannot be counted: %s", error)
            else:
                age = 0.0 if backlog.oldest is None else (self._clock() - backlog.oldest).total_seconds()
                metrics.WEBHOOK_PENDING.set(backlog.pending)
                metrics.WEBHOOK_OLDEST.set(max(0.0, age))
                metrics.WEBHOOK_FAILING.set(backlog.failing)
            await asyncio.sleep(COUNT_SECONDS)


_OUTCOMES = {Delivered: "delivered", Again: "repeated_later", GivenUp: "given_up"}


def _verdict(
    parcel: Parcel, answer: Answer | NoAnswer, attempted_at: datetime, ended_at: datetime, jitter: float
) -> Verdict:
    if parcel.is_test:
        # Somebody waits for its outcome, and asks for another one when they have put things right.
        delivered = isinstance(answer, Answer) and answer.is_success
        return Delivered() if delivered else GivenUp()
    return judge(answer, parcel.tries + 1, parcel.window_from or attempted_at, ended_at, jitter)


def _types(receivers: Sequence[Receiver]) -> set[str] | None:
    """What any of them wants; None when one of them wants all."""
    if any(not receiver.filter.types for receiver in receivers):
        return None
    return {name for receiver in receivers for name in receiver.filter.types}


def _share(
    receiver: Receiver, page: Sequence[Noted], room: dict[str, int], reached: int, span: Span | None
) -> Enqueued:
    """What of a page one receiver gets, as far as it has room."""
    name = receiver.subscription_id
    wanted = [
        event
        for event in page
        if receiver.takes(event.organization_id, event.event_type, event.stream_id, event.workspace_id)
    ]
    taken = wanted[: room[name]]
    room[name] -= len(taken)
    position = reached if len(taken) == len(wanted) else taken[-1].position
    return Enqueued(receiver, taken, position, span)
