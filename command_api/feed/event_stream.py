"""The feed as server-sent events: one subscription in one answer, for clients that have nothing but HTTP."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Literal, NoReturn

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from command_api.auth.tokens import Principal
from command_api.endless import ENDLESS
from command_api.feed import frames
from command_api.feed.parts import Closing, FeedParts
from command_api.feed.slots import FeedSlots
from command_api.feed.subscription import Subscription
from command_api.metrics import FEED_CONNECTIONS
from projections.reader import LogRow

RETRY_SECONDS = 2
RESET_ID: Literal["reset"] = "reset"
"""The id of a `reset`. `EventSource` connects again by itself and sends it: then 204 makes it stop."""

_HEADERS = {
    # Proxies must neither keep nor pack nor collect what has to arrive now.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


class EventStream(Response):
    """Serves a subscription, or says why its position means nothing, until either side ends it.

    Events have no event name, so that `onmessage` gets them; frames about the stream itself are named by
    their type. Every `id` is a position to go on from, but for that of `reset`: there is none any more.
    """

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(
        self,
        parts: FeedParts,
        caller: Principal,
        source: Subscription | frames.Frame,
        slots: FeedSlots,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(headers={**headers, **_HEADERS})
        del self.headers["content-length"]
        self._parts = parts
        self._caller = caller
        self._source = source
        self._slots = slots
        self._sending = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._out: Send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._slots.hold(self._caller.user_id), FEED_CONNECTIONS.track_inprogress():
            self._out = send
            scope["state"][ENDLESS] = self._stopping
            self._parts.connections.add(self)
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._serve(receive)
            except* (ClientDisconnect, OSError):
                pass  # it resumes by position
            finally:
                self._parts.connections.discard(self)

    def positions(self) -> list[int]:
        """How far the subscription is."""
        return [self._source.progress] if isinstance(self._source, Subscription) else []

    async def _serve(self, receive: Receive) -> None:
        limits = self._parts.limits
        try:
            head = await self._parts.reader.head()
            hello = frames.hello(head, self._parts.log_id, limits.heartbeat_seconds)
            await self._send(b"retry: %d\n" % (RETRY_SECONDS * 1000) + named(hello))
            async with asyncio.TaskGroup() as group:
                group.create_task(_left(receive), name="feed-receive")
                group.create_task(self._heartbeats(), name="feed-heartbeat")
                group.create_task(self._expire(), name="feed-expiry")
                group.create_task(self._lose_rights(), name="feed-rights-end")
                group.create_task(self._be_forgotten(), name="feed-erased")
                group.create_task(self._stop(), name="feed-stop")
                group.create_task(self._run(), name="feed-stream")
        except* Closing as ended:
            closing = next(error for error in ended.exceptions if isinstance(error, Closing))
            if closing.code != frames.STALLED:
                await self._send(named({"type": "closing", "code": closing.code, "reason": closing.reason}))
                await self._out({"type": "http.response.body", "body": b"", "more_body": False})

    async def _run(self) -> None:
        if isinstance(self._source, Subscription):
            await self._source.run(self)
        else:
            await self._send(named(self._source, RESET_ID))
        raise Closing(frames.BAD_FRAME, "begin anew, without the position")

    # ---- what the subscription sends ---------------------------------------------------------------

    async def events(self, sub: str, rows: Sequence[LogRow]) -> None:
        log_id = self._parts.log_id
        await self._send(
            b"".join(b"id: %d\ndata: %b\n\n" % (row.position, row.public_bytes(log_id)) for row in rows)
        )

    async def caught_up(self, sub: str, position: int) -> None:
        await self._send(named(frames.caught_up(sub, position), position))

    async def reset(self, sub: str, reason: str) -> None:
        await self._send(named(frames.reset(sub, self._parts.log_id, reason), RESET_ID))

    async def _send(self, text: bytes) -> None:
        async with self._sending:
            try:
                async with asyncio.timeout(self._parts.limits.stall_seconds):
                    await self._out({"type": "http.response.body", "body": text, "more_body": True})
            except TimeoutError:
                raise Closing(frames.STALLED, "nothing was taken for too long") from None

    # ---- what ends it, and what shows that it has not ended ------------------------------------------

    async def _heartbeats(self) -> NoReturn:
        while True:
            await asyncio.sleep(self._parts.limits.heartbeat_seconds)
            for position in self.positions():
                beat = {"type": "heartbeat", "head": self._parts.tail.head, "position": position}
                await self._send(named(beat, position))

    async def _expire(self) -> NoReturn:
        await asyncio.sleep(max(0.0, self._caller.expires_at - time.time()))
        raise Closing(frames.UNAUTHENTICATED, "the access token has ended; connect anew")

    async def _lose_rights(self) -> NoReturn:
        with self._parts.rights.watched(self._caller) as ended:
            await ended.wait()
            raise Closing(frames.FORBIDDEN, "you may not follow this organization's events any more")

    async def _be_forgotten(self) -> NoReturn:
        await self._parts.erased.wait(self._caller.user_id)
        raise Closing(frames.UNAUTHENTICATED, "the access token's owner was erased")

    async def _stop(self) -> NoReturn:
        await self._stopping.wait()
        raise Closing(frames.RESTARTING, "the service stops; connect again, and go on from the last id")


def named(frame: frames.Frame, place: int | str | None = None) -> bytes:
    """A frame that is no event of the log; `place` is what `EventSource` sends when it connects again."""
    identity = "" if place is None else f"id: {place}\n"
    text = json.dumps(frame, separators=(",", ":"), ensure_ascii=False)
    return f"{identity}event: {frame['type']}\ndata: {text}\n\n".encode()


async def _left(receive: Receive) -> NoReturn:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect
