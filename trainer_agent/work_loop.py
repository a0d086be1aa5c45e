"""How an idle agent gets its next attempt: one offer at a time, high priority first, then claimed."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import APIError
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from pydantic import ValidationError

from schemas.subjects import PRIORITIES, WORK_STREAM, Lane, claim_subject, work_durable
from schemas.work import Assignment, ClaimReply, ClaimRequest, HeldItem, WorkOffer, log_fields
from trainer_agent.connection import UNREACHABLE, Connection
from trainer_agent.errors import NoAnswer
from trainer_agent.orders import Orders
from trainer_agent.settings import AgentSettings
from trainer_agent.tracing import continued, traceparent_of
from trainer_agent.waiting import Backoff, unless

log = structlog.get_logger()

_tracer = trace.get_tracer(__name__)

Begin = Callable[[HeldItem, Assignment, str | None], Awaitable[None]]
"""The last one is the trace that the attempt belongs to."""

_FETCH_SECONDS = 0.2
_LATER_SECONDS = 5.0
_REMEMBERED = 1000


class Offers:
    """The pool's queues: a pull consumer per lane and priority, made by the control plane."""

    def __init__(
        self, connection: Connection, organization_id: str, pool: str, lanes: Sequence[Lane], orders: Orders
    ) -> None:
        self._connection = connection
        self._orders = orders
        # Priority decides first. Between the lanes of one priority the short one goes first: a
        # validation takes seconds, and trainings wait for it.
        ordered = sorted(lanes, key=lambda lane: lane != "validate")
        self._durables = [
            work_durable(organization_id, pool, lane, priority) for priority in PRIORITIES for lane in ordered
        ]
        self._client: Client | None = None
        self._subscriptions: dict[str, JetStreamContext.PullSubscription] = {}
        self._backoff = Backoff(first=0.5)

    async def next(self) -> Msg | None:
        """One look at every queue; None when all are empty. Waits a while when none can be read."""
        readable = False
        for durable in self._durables:
            try:
                messages = await (await self._subscription(durable)).fetch(1, timeout=_FETCH_SECONDS)
            except TimeoutError:
                readable = True  # nothing there
            except (APIError, NoAnswer, *UNREACHABLE) as error:
                log.debug("queue_unreadable", durable=durable, error=str(error))
            else:
                self._backoff.reset()
                return messages[0]
        if readable:
            self._backoff.reset()
        else:
            # The queues may not have been made yet, or NATS is away: both pass without our doing.
            await unless(self._orders.shutdown, self._backoff.wait())
        return None

    async def _subscription(self, durable: str) -> JetStreamContext.PullSubscription:
        if self._connection.client is not self._client:
            self._client = self._connection.client
            self._subscriptions.clear()
        if durable not in self._subscriptions:
            self._subscriptions[durable] = await self._connection.pull(WORK_STREAM, durable)
        return self._subscriptions[durable]


class WorkLoop:
    """Takes offers while the node is not shutting down; one attempt at a time."""

    def __init__(
        self, connection: Connection, settings: AgentSettings, orders: Orders, offers: Offers, begin: Begin
    ) -> None:
        self._connection = connection
        self._claim_subject = claim_subject(settings.organization_id, settings.agent_id)
        self._orders = orders
        self._offers = offers
        self._begin = begin
        self._over: OrderedDict[HeldItem, None] = OrderedDict()

    def forget(self, held: HeldItem) -> None:
        """Never begin `held` again: its reports were given to the control plane, numbered to the end."""
        self._over[held] = None
        while len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)

    async def run(self) -> None:
        """Returns when the node shuts down and the attempt at hand is over."""
        while not self._orders.shutting_down:
            message = await self._offers.next()
            if message is None:
                continue
            if self._orders.shutting_down:
                await self._settle(message.nak())
                return
            await self._consider(message)

    async def _consider(self, message: Msg) -> None:
        try:
            offer = WorkOffer.model_validate_json(message.data)
        except ValidationError as error:
            log.warning("offer_unreadable", subject=message.subject, error=str(error))
            await self._settle(message.term())
            return
        held = HeldItem(item_id=offer.item_id, attempt=offer.attempt)
        if held in self._over:
            # A claim would be granted until the control plane has read our last report.
            await self._settle(message.ack())
            return
        reply = await self._claim(held, offer.traceparent)
        if reply is None or reply.outcome == "later":
            await self._settle(message.nak(delay=_LATER_SECONDS))
        elif reply.outcome == "gone" or reply.assignment is None:
            log.info("offer_gone", detail=reply.detail, **log_fields(held.item_id, held.attempt))
            await self._settle(message.ack())
        else:
            await self._take(held, reply.assignment, reply.traceparent, message)

    async def _take(
        self, held: HeldItem, assignment: Assignment, traceparent: str | None, message: Msg
    ) -> None:
        self._orders.hold(held)
        try:
            await self._settle(message.ack())
            await self._begin(held, assignment, traceparent)
        finally:
            self._orders.let_go()
            self.forget(held)

    async def _claim(self, held: HeldItem, traceparent: str | None) -> ClaimReply | None:
        request = ClaimRequest(item_id=held.item_id, attempt=held.attempt)
        fields = log_fields(held.item_id, held.attempt)
        attributes = {f"kinora.{name}": value for name, value in fields.items()}
        with _tracer.start_as_current_span(
            "ask for work", continued(traceparent), SpanKind.CLIENT, attributes
        ) as span:
            try:
                return await self._connection.request(
                    self._claim_subject, request, ClaimReply, traceparent=traceparent_of(span) or traceparent
                )
            except NoAnswer as error:
                log.info("claim_unanswered", error=error.message, **fields)
                return None

    async def _settle(self, answer: Awaitable[None]) -> None:
        """Send `answer` and make sure that it left. When it does not, the offer comes again; no harm."""
        try:
            await answer
            if (client := self._connection.client) is not None:
                await client.flush(timeout=2)
        except UNREACHABLE as error:
            log.debug("offer_not_settled", error=str(error))
