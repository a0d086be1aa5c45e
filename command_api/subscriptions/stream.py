"""What the API knows of EVENTS: how far a subscriber has read, and where a position lies. It only looks."""

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, Self

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NotFoundError

from command_api.messaging.connection import UNREACHABLE, ConnectionGone, connect, stay_open
from command_api.messaging.stream_places import StreamPlace, place_after
from command_api.messaging.together import end
from command_api.nats_auth.rights import reading_rights
from schemas.errors import KinoraError
from schemas.settings import NatsSettings
from schemas.subjects import EVENTS_STREAM

_log = structlog.get_logger(__name__)


class StreamAway(KinoraError):
    """NATS does not answer, or has no stream of events yet."""

    code = "events_stream_away"
    retryable = True


@dataclass(frozen=True, slots=True)
class ConsumerStanding:
    """How far a subscriber's consumer is."""

    pending: int
    """Events that it has not been given yet."""
    unacknowledged: int
    """Events that it was given and has not acknowledged."""
    waiting: int
    """Requests for events that are open right now: 0 when nobody reads."""


class EventsStream:
    """One connection to NATS for looking. NATS may be away, at the start too."""

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._connection: asyncio.Task[NoReturn] | None = None

    async def __aenter__(self) -> Self:
        self._connection = asyncio.create_task(self._stay_connected(), name="events stream")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            await end([self._connection])

    async def standing(self, durable: str) -> ConsumerStanding | None:
        """How far the consumer is; None when there is none now, or NATS does not answer."""
        if self._client is None or not self._client.is_connected:
            return None
        try:
            info = await self._client.jetstream(timeout=2).consumer_info(EVENTS_STREAM, durable)
        except (*UNREACHABLE, NatsError):
            return None
        return ConsumerStanding(info.num_pending or 0, info.num_ack_pending or 0, info.num_waiting or 0)

    async def place(self, position: int) -> StreamPlace:
        """Where a position lies.

        Raises:
            StreamAway: NATS or the stream is not there.
        """
        if self._client is None or not self._client.is_connected:
            raise StreamAway("NATS cannot be reached from here; try again")
        try:
            return await place_after(self._client.jetstream(timeout=2), position)
        except NotFoundError:
            raise StreamAway(f"there is no stream {EVENTS_STREAM} yet; the orchestrator makes it") from None
        except (*UNREACHABLE, APIError) as error:
            raise StreamAway(f"NATS does not answer ({type(error).__name__}); try again") from error

    async def _stay_connected(self) -> NoReturn:
        while True:
            try:
                async with connect(self._settings, "kinora-api-events", rights=reading_rights) as client:
                    self._client = client
                    await stay_open(client)
            except ConnectionGone as error:
                _log.warning("events_stream.reconnecting", reason=str(error))
