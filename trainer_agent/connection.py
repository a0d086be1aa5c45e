"""The agent's one connection to NATS: it outlives every outage, and nothing is queued behind its back.

A new client takes the place of one that nats-py closed for good, as it does on most errors that the
server reports, and of one whose JWT was renewed; the subscriptions move over. While there is no server,
requests fail at once with `NoAnswer` instead of being buffered: a heartbeat or a work request that
arrives a minute late would be wrong. What must not be lost is kept and sent again by its owner
(`reporter`).
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from pydantic import ValidationError

from schemas.base import Message
from trainer_agent.credentials import CurrentCredentials, NodeCredentials
from trainer_agent.errors import NoAnswer
from trainer_agent.outage import Outage
from trainer_agent.waiting import end

log = structlog.get_logger()

Reply = TypeVar("Reply", bound=Message)
Handler = Callable[[Msg], Awaitable[None]]

UNREACHABLE = (NatsError, OSError, asyncio.TimeoutError)
_REFUSAL = re.compile("authorization (violation|failed)|user authentication (revoked|expired)", re.IGNORECASE)
_ANSWER_SECONDS = 5.0
_RETIRE_SECONDS = 2 * _ANSWER_SECONDS
"""How long a client that was replaced still receives the answers that it waits for."""


class Connection:
    """An async context manager; entering it does not wait for a server."""

    def __init__(self, credentials: NodeCredentials, *, name: str, inbox_prefix: str) -> None:
        self._credentials = credentials
        self._name = name
        self._inbox_prefix = inbox_prefix
        self._client: Client | None = None
        self._handlers: dict[str, Handler] = {}
        self._session = 0
        self._changed = asyncio.Condition()
        self._keeper: asyncio.Task[None] | None = None
        self._renewed = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()
        self._outage = Outage()
        self._refused = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (self._keeper, *self._retiring):
            if task is not None:
                await end(task)

    @property
    def client(self) -> Client | None:
        """The connected client, or None during an outage."""
        return self._client if self._client is not None and self._client.is_connected else None

    @property
    def session(self) -> int:
        """How often it was connected so far."""
        return self._session

    async def session_after(self, session: int) -> int:
        """Wait for a connection newer than `session`; each connect and reconnect counts one up from 0."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._session > session)
            return self._session

    def subscribe(self, subject: str, handler: Handler) -> None:
        """Receive `subject` on every client to come; say so before entering the context."""
        self._handlers[subject] = handler

    def renew(self) -> None:
        """Go over to a client with the newest credentials, before the server ends the present one."""
        self._renewed.set()

    async def refused(self) -> None:
        """Wait until the server refuses these credentials once more: revoked, or only expired."""
        await self._refused.wait()
        self._refused.clear()

    async def request(
        self,
        subject: str,
        message: Message,
        reply: type[Reply],
        *,
        timeout: float = _ANSWER_SECONDS,
        traceparent: str | None = None,
    ) -> Reply:
        """Ask, once.

        Raises:
            NoAnswer: nobody answered in time, or the answer cannot be read.
        """
        client = self._connected(subject)
        try:
            answer = await client.request(
                subject, message.model_dump_json().encode(), timeout=timeout, headers=_headers(traceparent)
            )
        except UNREACHABLE as error:
            raise NoAnswer(f"no answer on {subject}: {error or type(error).__name__}") from error
        try:
            return reply.model_validate_json(answer.data)
        except ValidationError as error:
            raise NoAnswer(f"the answer on {subject} is no {reply.__name__}: {error}") from error

    async def publish(self, subject: str, message: Message) -> None:
        """Best effort: dropped while there is no server."""
        if (client := self.client) is not None:
            try:
                await client.publish(subject, message.model_dump_json().encode())
            except UNREACHABLE as error:
                log.debug("publish_dropped", subject=subject, error=str(error))

    async def publish_stored(
        self,
        subject: str,
        message: Message,
        *,
        stream: str,
        message_id: str,
        traceparent: str | None = None,
    ) -> None:
        """Publish to JetStream and wait until it is stored.

        Raises:
            NoAnswer: it is unknown whether it was stored; publish it again under the same id.
        """
        headers = {"Nats-Msg-Id": message_id, "content-type": "application/json"} | (
            _headers(traceparent) or {}
        )
        client = self._connected(subject)
        try:
            await client.jetstream().publish(
                subject,
                message.model_dump_json().encode(),
                timeout=_ANSWER_SECONDS,
                stream=stream,
                headers=headers,
            )
        except UNREACHABLE as error:
            raise NoAnswer(f"{stream} did not take {message_id}: {error or type(error).__name__}") from error

    async def pull(self, stream: str, durable: str) -> JetStreamContext.PullSubscription:
        """A subscription to a consumer that the control plane made; it lives as long as the client."""
        client = self._connected(durable)
        try:
            return await client.jetstream().pull_subscribe_bind(durable=durable, stream=stream)
        except UNREACHABLE as error:
            raise NoAnswer(f"cannot bind {durable}: {error or type(error).__name__}") from error

    def _connected(self, purpose: str) -> Client:
        if (client := self.client) is None:
            raise NoAnswer(f"not connected to NATS at {self._credentials.url}; {purpose} has to wait")
        return client

    async def _keep(self) -> None:
        present: Client | None = None
        try:
            while True:
                self._renewed.clear()
                client, closed = Client(), asyncio.Event()
                try:
                    await self._open(client, closed)
                    for subject, handler in self._handlers.items():
                        await client.subscribe(subject, cb=handler)
                except UNREACHABLE as error:
                    self._failed(error)
                    await client.close()
                except BaseException:
                    await client.close()
                    raise
                else:
                    if present is not None:
                        self._retire(present)
                    self._client = present = client
                    await self._count_session()
                    if await self._was_renewed(closed):
                        continue  # at once, and beside the present one: nothing is missed in between
                    log.warning("nats_closed", error=str(client.last_error))
                    self._note_refusal(client.last_error)
                    self._client = present = None
                    await client.close()
                await asyncio.sleep(1.0)  # a server that closes every connection must not be hammered
        finally:
            self._client = None
            if present is not None:
                await present.close()

    async def _was_renewed(self, closed: asyncio.Event) -> bool:
        """Wait until there are newer credentials, or the client is closed for good."""
        waiting = [asyncio.create_task(event.wait()) for event in (self._renewed, closed)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return not closed.is_set()
        finally:
            for task in waiting:
                await end(task)

    def _retire(self, client: Client) -> None:
        async def close() -> None:
            try:
                await asyncio.sleep(_RETIRE_SECONDS)
            finally:
                await client.close()

        task = asyncio.create_task(close())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _open(self, client: Client, closed: asyncio.Event) -> None:
        """Return when connected, however long that takes."""

        async def on_error(error: Exception) -> None:
            self._failed(error)

        async def on_reconnect() -> None:
            log.info("nats_reconnected", url=self._credentials.url)
            await self._count_session()

        async def on_close() -> None:
            closed.set()

        await client.connect(
            self._credentials.url,
            name=self._name,
            user_credentials=CurrentCredentials(self._credentials),
            inbox_prefix=self._inbox_prefix,
            error_cb=on_error,
            reconnected_cb=on_reconnect,
            closed_cb=on_close,
            max_reconnect_attempts=-1,  # the default closes the client after two minutes
            reconnect_time_wait=1,
            connect_timeout=5,
            ping_interval=10,  # the default notices a half-open connection after four minutes
            max_outstanding_pings=2,
            pending_size=0,  # never buffer while disconnected
        )

    async def _count_session(self) -> None:
        self._outage.over()
        async with self._changed:
            self._session += 1
            self._changed.notify_all()

    def _failed(self, error: BaseException) -> None:
        self._note_refusal(error)
        if self._outage.worth_saying(time.monotonic()):
            log.warning(
                "nats_unreachable", url=self._credentials.url, error=str(error) or type(error).__name__
            )

    def _note_refusal(self, error: BaseException | None) -> None:
        if _REFUSAL.search(str(error)):
            self._refused.set()


def _headers(traceparent: str | None) -> dict[str, str] | None:
    return None if traceparent is None else {"traceparent": traceparent}
