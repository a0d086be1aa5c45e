"""One client of the live feed: its frames in, its subscriptions' frames out, and when it has to go."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from command_api.auth.tokens import Principal
from command_api.feed import frames
from command_api.feed.frames import CLIENT_FRAME, Ack, FromPosition, Ping, Reauth, Subscribe, Unsubscribe
from command_api.feed.subscription import Selection, Subscription
from command_api.feed.telemetry import TelemetryHub
from command_api.wrong_fields import wrong_fields
from projections.reader import LogReader, LogTail
from schemas.errors import KinoraError
from schemas.events import REGISTRY

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """How patient the feed is."""

    heartbeat_seconds: float = 10.0
    stall_seconds: float = 30.0
    """A client that takes no frame for so long is cut off; it resumes by position."""
    subscriptions: int = 16
    frames: int = 100
    """Client frames within `frames_seconds`."""
    frames_seconds: float = 10.0
    frame_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class FeedParts:
    """What every connection shares."""

    log_id: str
    reader: LogReader
    tail: LogTail
    telemetry: TelemetryHub
    authenticate: Callable[[str], Principal]
    foreign: Callable[[str | None], str | None]
    """Why positions of a log mean nothing here; None when they do."""
    limits: FeedLimits = FeedLimits()
    connections: "set[FeedConnection]" = field(default_factory=set)
    """Those that are being served."""

    def lag(self) -> int:
        """How many positions the slowest subscription is behind what the log is known to hold."""
        positions = (position for connection in self.connections for position in connection.positions())
        return max(0, self.tail.head - min(positions, default=self.tail.head))


class Closing(Exception):
    """The connection ends with this WebSocket close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class FeedConnection:
    """Serves one accepted WebSocket until either side ends it."""

    def __init__(self, socket: WebSocket, caller: Principal, parts: FeedParts) -> None:
        self._socket = socket
        self._caller = caller
        self._parts = parts
        self._sending = asyncio.Lock()
        self._running: dict[str, tuple[Subscription, asyncio.Task[None]]] = {}
        self._reauthenticated = asyncio.Event()
        self._window_start = 0.0
        self._window_frames = 0

    async def serve(self) -> None:
        """Return when the connection has ended; nothing of it keeps running."""
        closing: Closing | None = None
        self._parts.connections.add(self)
        try:
            limits = self._parts.limits
            head = await self._parts.reader.head()
            await self._send(frames.hello(head, self._parts.log_id, limits.heartbeat_seconds))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(group), name="feed-receive")
                group.create_task(self._heartbeats(), name="feed-heartbeat")
                group.create_task(self._expire(), name="feed-expiry")
        except* WebSocketDisconnect:
            closing = None
        except* Closing as ended:
            closing = next(error for error in _leaves(ended) if isinstance(error, Closing))
        except* Exception as failed:  # noqa: BLE001 (the door of the connection: others go on)
            _log.error("feed.failed", exc_info=failed)
            closing = Closing(1011, "internal error")
        finally:
            self._parts.connections.discard(self)
        if closing is not None:
            await self._close(closing)

    def positions(self) -> list[int]:
        """How far each subscription has sent."""
        return [subscription.position for subscription, _ in self._running.values()]

    # ---- out -------------------------------------------------------------------------------------

    async def _send(self, frame: frames.Frame) -> None:
        text = json.dumps(frame, separators=(",", ":"), ensure_ascii=False)
        async with self._sending:
            try:
                async with asyncio.timeout(self._parts.limits.stall_seconds):
                    await self._socket.send_text(text)
            except TimeoutError:
                raise Closing(frames.STALLED, "no frame was taken for too long; resume by position") from None
            except RuntimeError as error:  # Starlette's answer to sending after the other side has gone
                raise WebSocketDisconnect(1006) from error

    async def _close(self, closing: Closing) -> None:
        try:
            async with asyncio.timeout(5):
                await self._socket.close(closing.code, closing.reason)
        except (TimeoutError, RuntimeError, WebSocketDisconnect):
            return

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self._parts.limits.heartbeat_seconds)
            await self._heartbeat()

    async def _heartbeat(self) -> None:
        states = {
            name: {"position": subscription.position, "acknowledged": subscription.acknowledged}
            for name, (subscription, _) in self._running.items()
        }
        await self._send(frames.heartbeat(self._parts.tail.head, states))

    async def _expire(self) -> None:
        while True:
            self._reauthenticated.clear()
            try:
                async with asyncio.timeout(max(0.0, self._caller.expires_at - time.time())):
                    await self._reauthenticated.wait()
            except TimeoutError:
                raise Closing(frames.UNAUTHENTICATED, "the access token has ended; connect anew") from None

    # ---- in --------------------------------------------------------------------------------------

    async def _receive(self, group: asyncio.TaskGroup) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code") or 1000)
            self._count()
            text = message.get("text")
            if text is None or len(text) > self._parts.limits.frame_bytes:
                raise Closing(frames.BAD_FRAME, "a frame is JSON text of at most 64 KiB")
            try:
                frame = CLIENT_FRAME.validate_json(text)
            except ValidationError as error:
                await self._send(frames.error("bad_frame", _first_fault(error)))
                raise Closing(frames.BAD_FRAME, "the frame is not one of the protocol") from None
            match frame:
                case Subscribe():
                    await self._subscribe(frame, group)
                case Unsubscribe():
                    await self._unsubscribe(frame.sub)
                case Ack():
                    await self._acknowledge(frame)
                case Ping():
                    await self._heartbeat()
                case Reauth():
                    await self._reauthenticate(frame)

    def _count(self) -> None:
        now = time.monotonic()
        if now - self._window_start > self._parts.limits.frames_seconds:
            self._window_start, self._window_frames = now, 0
        self._window_frames += 1
        if self._window_frames > self._parts.limits.frames:
            raise Closing(frames.TOO_MUCH, "too many frames")

    async def _subscribe(self, frame: Subscribe, group: asyncio.TaskGroup) -> None:
        # First of all: whatever else is wrong with positions and ids of another log does not matter.
        foreign = self._parts.foreign(frame.log_id)
        if foreign is not None:
            await self._send(frames.reset(frame.sub, self._parts.log_id, foreign))
            return
        head = await self._parts.reader.head()
        fault = self._fault(frame, head) or await self._unknown_stream(frame)
        if fault is not None:
            await self._send(frames.error(*fault, frame.sub))
            return
        match frame.start:
            case FromPosition(position=position):
                start = position
            case "earliest":
                start = 0
            case "latest":
                start = head
        wanted = frame.filter
        selection = Selection(
            organization_id=self._caller.organization_id,
            types=None if wanted.types is None else frozenset(wanted.types),
            stream_id=wanted.job_id or wanted.stream_id,
            workspace_id=wanted.workspace_id,
        )
        subscription = Subscription(
            frame.sub, selection, start, self._parts.reader, self._parts.tail, self._parts.log_id
        )
        job_id = wanted.job_id if wanted.telemetry else None
        task = group.create_task(self._run(subscription, head, job_id), name=f"feed-{frame.sub}")
        self._running[frame.sub] = (subscription, task)

    async def _run(self, subscription: Subscription, head: int, telemetry_of: str | None) -> None:
        if telemetry_of is None:
            await subscription.run(self._send, head)
            return
        hub = self._parts.telemetry
        async with (
            hub.watch(self._caller.organization_id, telemetry_of) as watch,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(subscription.run(self._send, head))
            group.create_task(watch.run(self._send, subscription.name, telemetry_of))

    def _fault(self, frame: Subscribe, head: int) -> tuple[str, str] | None:
        wanted = frame.filter
        known = {event_type.TYPE for event_type in REGISTRY.types}
        unknown = sorted(set(wanted.types or ()) - known)
        if frame.mode != "lossless":
            return "unsupported_mode", "mode conflated is not offered; use lossless"
        if frame.sub in self._running:
            return (
                "subscription_exists",
                f"{frame.sub} is subscribed already; unsubscribe it or choose a name",
            )
        if len(self._running) >= self._parts.limits.subscriptions:
            return "too_many_subscriptions", f"{len(self._running)} subscriptions are open; end one first"
        if unknown:
            return "unknown_type", f"there are no events of type {', '.join(unknown)}"
        if wanted.job_id and wanted.stream_id not in (None, wanted.job_id):
            return "bad_filter", "job_id and stream_id name different streams; give one of them"
        if wanted.telemetry and wanted.job_id is None:
            return "bad_filter", "telemetry is a job's; name it in job_id"
        if isinstance(frame.start, FromPosition) and frame.start.position > head:
            return "bad_position", f"position {frame.start.position} is beyond the log's end {head}"
        return None

    async def _unknown_stream(self, frame: Subscribe) -> tuple[str, str] | None:
        stream_id = frame.filter.job_id or frame.filter.stream_id
        if stream_id is None:
            return None
        organization_id = self._caller.organization_id
        if await self._parts.reader.page(0, 1, organization_id=organization_id, stream_id=stream_id):
            return None
        return "not_found", f"{stream_id} does not exist"

    async def _unsubscribe(self, name: str) -> None:
        running = self._running.pop(name, None)
        if running is None:
            await self._send(frames.error("not_subscribed", f"{name} is not subscribed", name))
            return
        running[1].cancel()

    async def _acknowledge(self, frame: Ack) -> None:
        running = self._running.get(frame.sub)
        if running is None or frame.position > running[0].position:
            message = f"position {frame.position} was never sent to {frame.sub}"
            await self._send(frames.error("bad_position", message, frame.sub))
            return
        running[0].acknowledged = max(running[0].acknowledged, frame.position)

    async def _reauthenticate(self, frame: Reauth) -> None:
        try:
            fresh = self._parts.authenticate(frame.token)
        except KinoraError:
            raise Closing(frames.UNAUTHENTICATED, "the new access token is not valid") from None
        if replace(fresh, expires_at=0, scopes=()) != replace(self._caller, expires_at=0, scopes=()):
            raise Closing(frames.FORBIDDEN, "the new access token is somebody else's")
        if frames.SCOPE not in fresh.scopes:
            raise Closing(frames.FORBIDDEN, f"the new access token lacks the scope {frames.SCOPE}")
        self._caller = fresh
        self._reauthenticated.set()


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    (wrong,) = wrong_fields([{**fault, "loc": ("body", *fault["loc"])}])
    return f"{wrong.pointer or 'the frame'}: {wrong.message}"
