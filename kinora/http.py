"""Serves an ASGI application with uvicorn, inside a process that handles signals and readiness itself."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from command_api.endless import ENDLESS
from command_api.settings import ApiSettings
from kinora.local.errors import ChildFailed, PortTaken

_HEADER_BYTES = 32 * 1024
_FRAME_BYTES = 2**20
"""Of a WebSocket message as it is after decompression; the feed's own frames are smaller still."""


async def serve_http(
    configuration: uvicorn.Config,
    stop: asyncio.Event,
    *,
    what: str,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until `stop` is set; `ready` is called once connections are accepted.

    Raises:
        ChildFailed: the application does not start.
        PortTaken: its port is somebody else's; `what` names who wanted it.
    """
    server = _Server(configuration, ready)
    listening = listen(what, configuration.host, configuration.port)
    serving = asyncio.create_task(server.serve([listening]), name="http")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        server.should_exit = True
        await serving
    if not server.started:
        raise ChildFailed(f"{what} did not start; see the log above")


def configuration(settings: ApiSettings, app: ASGIApp) -> uvicorn.Config:
    """How the application is served: what one client may hold, and for how long."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # The application knows which proxies to believe; uvicorn would believe whatever is on this machine.
        proxy_headers=False,
        http=_protocol(settings.header_seconds),
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_keep_alive=5,
        limit_concurrency=settings.connections,
        ws="websockets-sansio",
        ws_max_size=_FRAME_BYTES,
        # Every client would cost a window of memory, and every frame more time than all the rest of it.
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=5,
    )


def _protocol(header_seconds: float) -> type[H11Protocol]:
    class HastyProtocol(H11Protocol):
        """Ends connections whose client does not get to the end of a request's headers in time."""

        _reading_headers: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait_for_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._wait_for_headers()
            else:
                self._headers_read()

        def handle_websocket_upgrade(self, event: h11.Request) -> None:
            self._headers_read()
            super().handle_websocket_upgrade(event)
            self._upgraded = True

        def connection_lost(self, exc: Exception | None) -> None:
            self._headers_read()
            super().connection_lost(exc)

        _upgraded = False

        def shutdown(self) -> None:
            super().shutdown()
            # Answers that have an end may come to it; the others are told to.
            if self.cycle is not None and (stopping := self.cycle.scope["state"].get(ENDLESS)) is not None:
                stopping.set()

        def _wait_for_headers(self) -> None:
            if self._reading_headers is None and not self._upgraded and not self.transport.is_closing():
                self._reading_headers = self.loop.call_later(header_seconds, self.transport.close)

        def _headers_read(self) -> None:
            if self._reading_headers is not None:
                self._reading_headers.cancel()
                self._reading_headers = None

    return HastyProtocol


def listen(what: str, host: str, port: int) -> socket.socket:
    """A socket for the application to accept on. Made here: uvicorn ends the process when the port is taken.

    Raises:
        PortTaken: `what` names who wanted it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise PortTaken(
            f"{what} cannot listen on {host}:{port}: {error.strerror};"
            " end what listens there, or change host or port in the settings"
        ) from error
    # Connections inherit it. asyncio sets it only on sockets that it made itself, and without it every small
    # answer waits 40 ms: its head is acknowledged late, and its body is held back until then.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


class _Server(uvicorn.Server):
    """Leaves signals alone, and says when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()
