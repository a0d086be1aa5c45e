"""What happens to every request before its route: an id, the trace it belongs to, and a limit on its body."""

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.ids import Prefix, new_id

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{8,128}$")
_TRACEPARENT = re.compile(r"^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")


class RequestStory:
    """Gives every request an id, taken over from the caller when well-formed, and answers with it.

    The id becomes the correlation id of the events that the request causes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.match(given) else new_id(Prefix.REQUEST)
        traceparent = headers.get("traceparent", "")
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["traceparent"] = traceparent if _TRACEPARENT.match(traceparent) else None

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self._app(scope, receive, with_id)


class BodyLimit:
    """Refuses bodies that are packed, too slow, or over a size, declared or as it turns out."""

    def __init__(
        self, app: ASGIApp, max_bytes: int, larger: Mapping[tuple[str, str], int], max_seconds: float
    ) -> None:
        """`larger` has the limits of the few operations, by method and path, that take more.

        `max_seconds` count from the first look at the body to its end.
        """
        self._app = app
        self._max_bytes = max_bytes
        self._larger = larger
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._larger.get((scope["method"], scope["path"]), self._max_bytes)
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        encoding = headers.get("content-encoding", "identity").strip().lower()
        received = 0
        whole = False
        deadline: float | None = None

        def check(size: int) -> None:
            if size > limit:
                raise HTTPException(413, f"the body is larger than the {limit} bytes that are taken here")

        async def in_time() -> Message:
            nonlocal deadline
            loop = asyncio.get_running_loop()
            deadline = deadline or loop.time() + self._max_seconds
            try:
                async with asyncio.timeout_at(deadline):
                    return await receive()
            except TimeoutError:
                raise HTTPException(
                    408,
                    f"the body did not arrive within {self._max_seconds:g} s ({received} bytes did);"
                    " send it again, in one go",
                    {"Connection": "close"},
                ) from None

        async def limited() -> Message:
            nonlocal received, whole
            if encoding != "identity":
                # Nothing is unpacked here, so nothing small can become large.
                raise HTTPException(
                    415,
                    f"the body is encoded as {encoding[:40]!r}; send it plain",
                    {"Accept-Encoding": "identity"},
                )
            if declared.isdigit():
                check(int(declared))
            # Behind the body, what comes is only that the client has gone, whenever that may be.
            message = await (receive() if whole else in_time())
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                check(received)
                whole = not message.get("more_body", False)
            return message

        await self._app(scope, limited, send)
