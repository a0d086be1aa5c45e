"""Full-rate measurements for whoever watches: from core NATS, conflated, never stored, never essential."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn, Self

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from pydantic import ValidationError

from command_api.messaging.connection import ConnectionGone, connect, stay_open
from command_api.nats_auth.rights import telemetry_rights
from schemas.settings import NatsSettings
from schemas.subjects import telemetry_subject
from schemas.work import TelemetryLine

_log = structlog.get_logger(__name__)

FRAMES_PER_SECOND = 10
_POINTS = 64
_LINES = 100


@dataclass(slots=True, eq=False)
class Watch:
    """What one watcher has not seen yet; the newest wins when there is too much."""

    points: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_POINTS))
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES))
    phase: str | None = None
    attempt: int = 0
    fresh: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, line: TelemetryLine) -> None:
        self.attempt = line.attempt
        self.phase = line.phase or self.phase
        self.points.extend(point.model_dump(mode="json") for point in line.points)
        self.log.extend(line.log)
        self.fresh.set()

    async def run(self, send: Callable[[dict[str, Any]], Awaitable[None]], sub: str, job_id: str) -> None:
        """Send a frame when there is something new, at most ten a second, until cancelled."""
        while True:
            await self.fresh.wait()
            self.fresh.clear()
            frame = {
                "type": "telemetry",
                "sub": sub,
                "job_id": job_id,
                "attempt": self.attempt,
                "phase": self.phase,
                "points": list(self.points),
                "log": list(self.log),
            }
            self.points.clear()
            self.log.clear()
            await send(frame)
            await asyncio.sleep(1 / FRAMES_PER_SECOND)


class TelemetryHub:
    """One NATS connection and one subscription per watched job, shared by all watchers of this process.

    NATS may be away, at the start too: watchers then see nothing until it is back.
    """

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._connection: asyncio.Task[NoReturn] | None = None
        self._watches: dict[str, set[Watch]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._settling = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._connection = asyncio.create_task(self._stay_connected(), name="telemetry")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.cancel()
            await asyncio.gather(self._connection, return_exceptions=True)

    @property
    def connected(self) -> bool:
        """Whether NATS is there right now."""
        return self._client is not None and self._client.is_connected

    @asynccontextmanager
    async def watch(self, organization_id: str, job_id: str) -> AsyncIterator[Watch]:
        """What arrives of a job for as long as the context lasts."""
        subject = telemetry_subject(organization_id, job_id)
        watch = Watch()
        watchers = self._watches.setdefault(subject, set())
        watchers.add(watch)
        try:
            await self._settle(subject)
            yield watch
        finally:
            watchers.discard(watch)
            if not watchers:
                self._watches.pop(subject, None)
                await self._settle(subject)

    async def _stay_connected(self) -> NoReturn:
        while True:
            try:
                async with connect(self._settings, "kinora-api-telemetry", rights=telemetry_rights) as client:
                    self._client = client
                    self._subscriptions.clear()
                    for subject in list(self._watches):
                        await self._settle(subject)
                    await stay_open(client)
            except ConnectionGone as error:
                _log.warning("telemetry.reconnecting", reason=str(error))

    async def _settle(self, subject: str) -> None:
        """Be subscribed exactly while somebody watches; one change at a time, for watchers come together."""
        async with self._settling:
            subscription = self._subscriptions.get(subject)
            if self._client is None or (subject in self._watches) == (subscription is not None):
                return
            try:
                if subscription is None:
                    self._subscriptions[subject] = await self._client.subscribe(subject, cb=self._on_message)
                else:
                    del self._subscriptions[subject]
                    await subscription.unsubscribe()
            except NatsError as error:
                _log.warning("telemetry.not_settled", subject=subject, reason=str(error))

    async def _on_message(self, message: Msg) -> None:
        try:
            line = TelemetryLine.model_validate_json(message.data)
        except ValidationError as error:
            _log.warning("telemetry.unreadable", subject=message.subject, reason=str(error.error_count()))
            return
        for watch in self._watches.get(message.subject, ()):
            watch.add(line)
