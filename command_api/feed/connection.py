"""One client of the live feed: its frames in, its subscriptions' frames out, and when it has to go."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace

import structlog
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from command_api.auth.tokens import Principal
from command_api.feed import frames
from command_api.feed.frames import CLIENT_FRAME, Ack, Ping, Reauth, Subscribe, Unsubscribe
from command_api.feed.opening import Fault, Foreign, open_subscription
from command_api.feed.parts import Closing, FeedParts
from command_api.feed.subscription import Subscription
from command_api.wrong_fields import wrong_fields
from projections.reader import LogRow
from schemas.errors import KinoraError

_log = structlog.get_logger(__name__)


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
                group.create_task(self._lose_rights(), name="feed-rights-end")
                group.create_task(self._be_forgotten(), name="feed-erased")
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
        return [subscription.progress for subscription, _ in self._running.values()]

    # ---- out -------------------------------------------------------------------------------------

    async def events(self, sub: str, rows: Sequence[LogRow]) -> None:
        head, rest = frames.event_head(sub), self._parts.texts.frame_rest
        await self._send_texts([head + rest(row) for row in rows])

    async def caught_up(self, sub: str, position: int) -> None:
        await self._send(frames.caught_up(sub, position))

    async def reset(self, sub: str, reason: str) -> None:
        await self._send(frames.reset(sub, self._parts.log_id, reason))

    async def _send(self, frame: frames.Frame) -> None:
        await self._send_texts([json.dumps(frame, separators=(",", ":"), ensure_ascii=False)])

    async def _send_texts(self, texts: Sequence[str]) -> None:
        stall_seconds, now = self._parts.limits.stall_seconds, asyncio.get_running_loop().time
        async with self._sending:
            try:
                async with asyncio.timeout(stall_seconds) as patience:
                    begun = now()
                    for text in texts:
                        await self._socket.send_text(text)
                        if now() - begun > stall_seconds / 4:  # slow, but it does take frames
                            begun = now()
                            patience.reschedule(begun + stall_seconds)
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
            name: {"position": subscription.progress, "acknowledged": subscription.acknowledged}
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

    async def _lose_rights(self) -> None:
        with self._parts.rights.watched(self._caller) as ended:
            await ended.wait()
            raise Closing(frames.FORBIDDEN, "you may not follow this organization's events any more")

    async def _be_forgotten(self) -> None:
        await self._parts.erased.wait(self._caller.user_id)
        raise Closing(frames.UNAUTHENTICATED, "the access token's owner was erased")

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
                await self._refuse(error, text)
                continue
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

    async def _refuse(self, error: ValidationError, text: str) -> None:
        """Say what is wrong; whose frames are none of this protocol has to go."""
        field, message = first_fault(error, text)
        said = f"{field or 'the frame'}: {message}"
        if not error.errors(include_url=False)[0]["loc"]:  # no JSON object, or none of the types
            await self._send(frames.error("bad_frame", said))
            raise Closing(frames.BAD_FRAME, "the frame is not one of the protocol") from None
        sub = json.loads(text).get("sub")
        await self._send(frames.error("bad_field", said, sub if isinstance(sub, str) else None, field))

    def _count(self) -> None:
        now = time.monotonic()
        if now - self._window_start > self._parts.limits.frames_seconds:
            self._window_start, self._window_frames = now, 0
        self._window_frames += 1
        if self._window_frames > self._parts.limits.frames:
            raise Closing(frames.TOO_MUCH, "too many frames")

    async def _subscribe(self, frame: Subscribe, group: asyncio.TaskGroup) -> None:
        match self._room(frame) or await open_subscription(self._parts, self._caller, frame):
            case Foreign(reason):
                await self._send(frames.reset(frame.sub, self._parts.log_id, reason))
            case Fault(code, message, field):
                await self._send(frames.error(code, message, frame.sub, field))
            case Subscription() as subscription:
                job_id = frame.filter.job_id if frame.filter.telemetry else None
                task = group.create_task(self._run(subscription, job_id), name=f"feed-{frame.sub}")
                self._running[frame.sub] = (subscription, task)

    def _room(self, frame: Subscribe) -> Fault | None:
        if frame.sub in self._running:
            return Fault(
                "subscription_exists",
                f"{frame.sub} is subscribed already; unsubscribe it or choose a name",
                "/sub",
            )
        if len(self._running) >= self._parts.limits.subscriptions:
            return Fault(
                "too_many_subscriptions", f"{len(self._running)} subscriptions are open; end one first"
            )
        return None

    async def _run(self, subscription: Subscription, telemetry_of: str | None) -> None:
        if telemetry_of is None:
            await subscription.run(self)
        else:
            hub = self._parts.telemetry
            async with (
                hub.watch(self._caller.organization_id, telemetry_of) as watch,
                asyncio.TaskGroup() as group,
            ):
                watching = group.create_task(watch.run(self._send, subscription.name, telemetry_of))
                await subscription.run(self)
                watching.cancel()
        # It ended by itself, with a reset: its name is free again.
        del self._running[subscription.name]

    async def _unsubscribe(self, name: str) -> None:
        running = self._running.pop(name, None)
        if running is None:
            await self._send(_not_subscribed(name))
            return
        running[1].cancel()

    async def _acknowledge(self, frame: Ack) -> None:
        running = self._running.get(frame.sub)
        if running is None:
            await self._send(_not_subscribed(frame.sub))
            return
        if frame.position > running[0].progress:
            message = f"position {frame.position} was never sent to {frame.sub}"
            await self._send(frames.error("bad_position", message, frame.sub, "/position"))
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


def _not_subscribed(name: str) -> frames.Frame:
    return frames.error("not_subscribed", f"{name} is not subscribed", name, "/sub")


def first_fault(error: ValidationError, text: str) -> tuple[str | None, str]:
    """Where the frame is wrong, and how: the value that was given and what is possible instead."""
    faults = error.errors(include_url=False)
    given = None if faults[0]["type"] == "json_invalid" else json.loads(text)
    wrong, *_ = wrong_fields([{**fault, "loc": ("body", *fault["loc"])} for fault in faults], given=given)
    return wrong.pointer or None, wrong.message
