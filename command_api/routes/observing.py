"""What is recorded of every request: a span, a duration by route, and a line in the log."""

import time
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from command_api.metrics import FEED_CONNECTIONS, HTTP_IN_PROGRESS, HTTP_SECONDS
from command_api.tracing import continued, traceparent_of

_log = structlog.get_logger(__name__)
_tracer = trace.get_tracer(__name__)

_UNKNOWN_ROUTE = "unmatched"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_WATCHED = ("/metrics", "/health")
"""Asked every few seconds by machines: worth a number, not a line."""
_LONGEST_PATH = 500
"""Of ours none is longer; whoever sends another may not fill the log with it."""


class Observed:
    """Goes around everything else but `RequestStory`, which names the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "websocket":
                await self._websocket(scope, receive, send)
            case _:
                await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: dict[str, Any] = scope["state"]
        method = scope["method"] if scope["method"] in _METHODS else "other"
        status = 500  # of a request that breaks before anybody answers
        began = time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        span = _tracer.start_span(
            method,
            continued(state["traceparent"]),
            SpanKind.SERVER,
            {
                "http.request.method": method,
                "url.path": scope["path"][:_LONGEST_PATH],
                "url.scheme": scope["scheme"],
                "kinora.request_id": state["request_id"],
            },
        )
        state["traceparent"] = traceparent_of(span)
        with (
            structlog.contextvars.bound_contextvars(request_id=state["request_id"]),
            trace.use_span(span, end_on_exit=True),
            HTTP_IN_PROGRESS.track_inprogress(),
        ):
            try:
                await self._app(scope, receive, noting)
            finally:
                seconds = time.perf_counter() - began
                route = route_of(scope)
                HTTP_SECONDS.labels(method, route, str(status)).observe(seconds)
                if span.is_recording():
                    span.update_name(f"{method} {route}")
                    span.set_attributes({"http.route": route, "http.response.status_code": status})
                    if status >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                self._tell(scope, method, route, status, seconds)

    def _tell(self, scope: Scope, method: str, route: str, status: int, seconds: float) -> None:
        if scope["path"].startswith(_WATCHED) and status < 500:
            return
        # The path without its query, which may hold what only the caller should know.
        _log.info(
            "request",
            method=method,
            path=scope["path"][:_LONGEST_PATH],
            route=route,
            status=status,
            milliseconds=round(seconds * 1000, 1),
            client=(scope.get("client") or ("",))[0],
        )

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        code: int | None = None

        async def noting(message: Message) -> None:
            nonlocal code
            if message["type"] == "websocket.close":
                code = message.get("code")
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=scope["state"]["request_id"]):
            try:
                with FEED_CONNECTIONS.track_inprogress():
                    await self._app(scope, receive, noting)
            finally:
                seconds = round(time.perf_counter() - began, 3)
                _log.info(
                    "connection_ended", path=scope["path"][:_LONGEST_PATH], seconds=seconds, close_code=code
                )


def route_of(scope: Scope) -> str:
    """The route's template, so that ids do not make a series each."""
    # The route itself knows only its own end of the path when it was included under a prefix.
    route = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else _UNKNOWN_ROUTE
