"""The client's side: as much of `nats.aio.client.Client` as our code and nats-py's JetStream context use."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from tests.simulation.jetstream.server import Reply, Server
from tests.simulation.scheduler import NOWHERE, PROCESS, Process, SimulatedLoop

MAX_PAYLOAD = 1024 * 1024
RECONNECT_SECONDS = 1.0


class Network:
    """Between all processes and the broker."""

    def __init__(self, loop: SimulatedLoop, server: Server) -> None:
        self.loop = loop
        self.server = server
        self.clients: list[Client] = []
        self.slow_until = 0.0
        self.swallow_answer: Callable[[Process | None, str], bool] = lambda _process, _subject: False
        """Whether the answer to this request, which was carried out, is lost."""

    def travel(self) -> float:
        seconds = self.loop.random.expovariate(1 / 0.0004)
        if self.loop.random.random() < 0.01:
            seconds += self.loop.random.random() * 0.05
        if self.loop.time() < self.slow_until:
            seconds += self.loop.random.random() * 0.2
        return seconds

    def stop_server(self) -> None:
        self.server.up = False
        self.server.restart()
        for client in self.clients:
            client.disconnect()

    def start_server(self) -> None:
        self.server.up = True


class Client:
    """A connected client that reconnects for ever.

    While it is not connected, what it publishes waits in its buffer and is sent afterwards, also when
    whoever asked has long given up.
    """

    connected_server_version = SimpleNamespace(major=2, minor=15, patch=1)

    def __init__(self, network: Network, *, reconnected: Callable[[], Awaitable[None]] | None = None) -> None:
        self._network = network
        self._loop = network.loop
        self._process = PROCESS.get()
        self._reconnected = reconnected
        self._connection = 1
        self._buffer: list[tuple[str, dict[str, str], bytes, asyncio.Future[Reply] | None]] = []
        self._last_out = 0.0
        self._last_in = 0.0
        self._stalled_until = 0.0
        self.is_connected = True
        self.is_closed = False
        self.max_payload = MAX_PAYLOAD
        network.clients.append(self)
        if self._process is not None:
            self._process.on_death.append(self._die)

    def jetstream(self, **options: Any) -> JetStreamContext:
        return JetStreamContext(self, **options)  # type: ignore[arg-type]

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, Any] | None = None
    ) -> None:
        self._send(subject, payload, headers, None)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._send(subject, payload, headers, answer)
        try:
            reply = await asyncio.wait_for(answer, timeout)
        except TimeoutError:
            raise nats.errors.TimeoutError from None
        if reply.headers is not None and reply.headers.get("Status") == "503":
            raise nats.errors.NoRespondersError
        return Msg(
            _client=self,  # type: ignore[arg-type]
            subject=reply.subject,
            reply=reply.reply_to,
            data=reply.data,
            headers=dict(reply.headers) if reply.headers else None,
        )

    def _send(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, Any] | None,
        answer: asyncio.Future[Reply] | None,
    ) -> None:
        if self._loop.over or (self._process is not None and not self._process.alive):
            raise asyncio.CancelledError
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if len(payload) > self.max_payload:
            raise nats.errors.MaxPayloadError
        plain = {getattr(name, "value", name): str(value) for name, value in (headers or {}).items()}
        sent = (subject, plain, payload, answer)
        if self.is_connected:
            self._transmit(sent)
        else:
            self._buffer.append(sent)

    def _transmit(self, sent: tuple[str, dict[str, str], bytes, asyncio.Future[Reply] | None]) -> None:
        # One connection carries everything in order.
        now = self._loop.time()
        stalled = self._stalled_until > now
        self._last_out = max(self._last_out + 1e-9, now + self._network.travel(), self._stalled_until)
        connection = None if stalled else self._connection
        self._loop.call_at(self._last_out, self._arrive, connection, sent, context=NOWHERE)

    def stall(self, seconds: float) -> None:
        """What is sent now is repeated by the kernel until it arrives, whatever becomes of its sender."""
        self._stalled_until = self._loop.time() + seconds

    def _arrive(
        self,
        connection: int | None,
        sent: tuple[str, dict[str, str], bytes, asyncio.Future[Reply] | None],
    ) -> None:
        if connection not in (None, self._connection) or not self._network.server.up:
            return
        subject, headers, payload, answer = sent
        if answer is None:
            self._network.server.handle(subject, headers, payload, None)
            return
        self._network.server.handle(
            subject, headers, payload, lambda reply: self._return(connection, subject, reply, answer)
        )

    def _return(
        self, connection: int | None, subject: str, reply: Reply, answer: asyncio.Future[Reply]
    ) -> None:
        if self._network.swallow_answer(self._process, subject):
            name = self._process.name if self._process else "nobody"
            self._loop.note(f"nats: the answer to {name}'s {subject} is lost")
            return
        self._last_in = max(self._last_in + 1e-9, self._loop.time() + self._network.travel())
        self._loop.call_at(self._last_in, self._deliver, connection, reply, answer, context=NOWHERE)

    def _deliver(self, connection: int | None, reply: Reply, answer: asyncio.Future[Reply]) -> None:
        if connection in (None, self._connection) and not answer.done():
            answer.set_result(reply)

    @property
    def process(self) -> Process | None:
        return self._process

    # ---- the connection -------------------------------------------------------------------------

    def disconnect(self) -> None:
        """What is under way in either direction is lost, and nobody is told."""
        if self.is_connected and not self.is_closed:
            self.is_connected = False
            self._connection += 1
            self._loop.call_later(
                RECONNECT_SECONDS * self._loop.random.random(), self._retry, context=NOWHERE
            )

    def _retry(self) -> None:
        if self.is_closed:
            return
        frozen = self._process is not None and self._process.frozen
        if not self._network.server.up or frozen:
            self._loop.call_later(RECONNECT_SECONDS, self._retry, context=NOWHERE)
            return
        self.is_connected = True
        buffered, self._buffer = self._buffer, []
        for sent in buffered:
            self._transmit(sent)
        if self._reconnected is not None and self._process is not None:
            self._loop.spawn(self._process, self._tell)

    async def _tell(self) -> None:
        assert self._reconnected is not None
        await self._reconnected()

    def _die(self) -> None:
        if self._loop.random.random() < 0.5:
            self._connection += 1  # what was under way never arrives
        self.is_closed = True
        if self in self._network.clients:
            self._network.clients.remove(self)

    async def close(self) -> None:
        self._die()
