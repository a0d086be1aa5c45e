"""The FastStream side: which subject is answered by what, with every setting that its defaults get wrong.

Its default ack policy drops a report at the first transient error, redelivery without delay spins, and
several workers break the order. Its batch subscriber (0.7.8) throws a batch away whose time runs out
while it asks for more: the reports come back only when the server misses them. So reports are pulled one
by one, acknowledged by hand, and gathered into batches by the inbox itself.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from faststream import AckPolicy, Path
from faststream.message import StreamMessage
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.nats.annotations import NatsMessage
from faststream.nats.security import NatsCredentials
from nats.aio.msg import Msg

from command_api.messaging.connection import Callback, log_error, options
from command_api.messaging.topology import inbox_config
from command_api.nats_auth.users import ControlUser, FreshCredentials
from schemas.subjects import (
    INBOX_DURABLE,
    REPORTS_STREAM,
    REPORTS_SUBJECTS,
    claim_subject,
    heartbeat_subject,
    hello_subject,
    presign_subject,
    renew_subject,
)
from schemas.work import (
    ClaimReply,
    ClaimRequest,
    Heartbeat,
    HeartbeatReply,
    Hello,
    HelloReply,
    PresignReply,
    PresignRequest,
    RenewReply,
    RenewRequest,
)

logger = logging.getLogger(__name__)

ORGANIZATION, AGENT = "{organization}", "{agent}"
AT_ONCE = 16
"""Requests of one kind that are answered at the same time; each agent asks one by one."""
FETCH_SECONDS = 2.0

Token = Annotated[str, Path()]


@dataclass(frozen=True)
class Desk:
    """Who answers what."""

    claim: Callable[[str, str, ClaimRequest, str | None], Awaitable[ClaimReply]]
    heartbeat: Callable[[str, str, Heartbeat], Awaitable[HeartbeatReply]]
    presign: Callable[[str, str, PresignRequest], Awaitable[PresignReply]]
    hello: Callable[[str, str, Hello], Awaitable[HelloReply]]
    renew: Callable[[str, str, RenewRequest], Awaitable[RenewReply]]
    report: Callable[[Msg], Awaitable[None]]


def make_broker(url: str, user: ControlUser, *, reconnected: Callback | None = None) -> NatsBroker:
    """A broker that never gives its connection up."""
    return NatsBroker(
        url,
        security=NatsCredentials(FreshCredentials(user.text)),
        error_cb=log_error,
        reconnected_cb=reconnected,
        logger=logger,
        log_level=logging.DEBUG,
        graceful_timeout=10.0,
        **options(user),
    )


@dataclass(frozen=True)
class ReportsSubscription:
    """The pull loop on REPORTS, which can be ended before the broker and begun anew."""

    stop: Callable[[], Awaitable[None]]
    start: Callable[[], Awaitable[None]]

    async def again(self) -> None:
        """Subscribe anew."""
        await self.stop()
        await self.start()


def subscribe(broker: NatsBroker, desk: Desk) -> ReportsSubscription:
    """Declare every subscriber; they begin with the broker."""

    @broker.subscriber(
        claim_subject(ORGANIZATION, AGENT),
        title="claims",
        description="An idle agent asks for the attempt that it was offered.",
        max_workers=AT_ONCE,
    )
    async def claim(
        body: ClaimRequest, organization: Token, agent: Token, message: NatsMessage
    ) -> ClaimReply:
        return await desk.claim(organization, agent, body, message.headers.get("traceparent"))

    @broker.subscriber(
        heartbeat_subject(ORGANIZATION, AGENT),
        title="heartbeats",
        description="Every agent, every 5 s; the reply carries lease and desired state.",
        max_workers=AT_ONCE,
    )
    async def heartbeat(body: Heartbeat, organization: Token, agent: Token) -> HeartbeatReply:
        return await desk.heartbeat(organization, agent, body)

    @broker.subscriber(
        presign_subject(ORGANIZATION, AGENT),
        title="presigning",
        description="URLs for the files of an attempt that the agent holds.",
        max_workers=AT_ONCE,
    )
    async def presign(body: PresignRequest, organization: Token, agent: Token) -> PresignReply:
        return await desk.presign(organization, agent, body)

    @broker.subscriber(
        hello_subject(ORGANIZATION, AGENT),
        title="introductions",
        description="An agent's capabilities, at its start and after each reconnect.",
        max_workers=AT_ONCE,
    )
    async def hello(body: Hello, organization: Token, agent: Token) -> HelloReply:
        return await desk.hello(organization, agent, body)

    @broker.subscriber(
        renew_subject(ORGANIZATION, AGENT),
        title="renewals",
        description="An agent's next NATS JWT, before the present one expires.",
        max_workers=AT_ONCE,
    )
    async def renew(body: RenewRequest, organization: Token, agent: Token) -> RenewReply:
        return await desk.renew(organization, agent, body)

    reports_subscriber = broker.subscriber(
        REPORTS_SUBJECTS,
        stream=JStream(REPORTS_STREAM, declare=False),
        durable=INBOX_DURABLE,
        config=inbox_config(),
        pull_sub=PullSub(batch_size=1, timeout=FETCH_SECONDS),
        ack_policy=AckPolicy.MANUAL,
        decoder=_undecoded,
        title="reports",
        description="One step of one attempt's story each, committed to the log in order.",
    )

    @reports_subscriber
    async def reports(message: NatsMessage) -> None:
        await desk.report(message.raw_message)

    return ReportsSubscription(reports_subscriber.stop, reports_subscriber.start)


async def _undecoded(message: StreamMessage[Any]) -> Any:
    """The inbox reads reports itself: one that cannot be read is put aside, not redelivered for ever."""
    return message.body
