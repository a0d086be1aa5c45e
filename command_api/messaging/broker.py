"""The FastStream side: which subject is answered by what, with every setting that its defaults get wrong.

Its default ack policy drops a report at the first transient error, redelivery without delay spins, and
several workers break the order. Its batch subscriber (0.7.8) throws a batch away whose time runs out
while it asks for more: the reports come back only when the server misses them. So reports are pulled one
by one, acknowledged by hand, and gathered into batches by the inbox itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Any

from faststream import AckPolicy, Path
from faststream.message import StreamMessage
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.nats.annotations import NatsMessage
from faststream.nats.security import NatsCredentials
from faststream.nats.subscriber.usecases.basic import LogicSubscriber
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from command_api.messaging.connection import Callback, close, log_error, options
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
CLOSED_SECONDS = 0.2

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


class _Client(Client):
    """A client that, closed for good, lets others run before it refuses.

    The library's pull loop (0.7.8) asks a closed client again at once, for ever, and never yields: the
    whole process would stand still, and nobody would notice that the connection is gone.
    """

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        reply: str = "",
        headers: dict[str, Any] | None = None,
    ) -> None:
        if self.is_closed:
            await asyncio.sleep(CLOSED_SECONDS)
        await super().publish(subject, payload, reply, headers)


class Broker(NatsBroker):
    """A broker that can be started again after it failed to, and whose end leaves nothing open.

    The library's (0.7.8) loses the client whose connecting is cancelled; started again, its subscribers
    wait for messages at queues that nobody fills any more; and while there is no server it does not end,
    but raises and stays connected.
    """

    async def _connect(self) -> Client:
        client = _Client()
        try:
            await client.connect(**self._connection_kwargs)
        except BaseException:
            await close(client)
            raise
        self.config.connect(client)
        return client

    async def start(self) -> None:
        """Connect, and subscribe.

        Raises:
            Exception: what a subscriber failed with; nothing is left open.
        """
        try:
            await super().start()
        except BaseException:
            await self.stop()
            raise

    async def stop(
        self,
        exc_type: type[BaseException] | None = None,
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,
    ) -> None:
        """Answer what was asked, and close the connection, whether or not there is a server."""
        client = self._connection
        try:
            await super().stop(exc_type, exc_val, exc_tb)
        except (ExceptionGroup, NatsError, OSError) as error:
            logger.debug("the broker ended without telling the server: %s", error)
            for subscriber in self.subscribers:
                if isinstance(subscriber, LogicSubscriber):
                    subscriber.subscription = None  # it ends with the connection
                await subscriber.stop()
        finally:
            if client is not None:
                await close(client)
            self._connection = None


def make_broker(url: str, user: ControlUser, *, reconnected: Callback | None = None) -> Broker:
    """A broker that never gives its connection up."""
    return Broker(
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
