"""Serves the API with uvicorn, inside a process that handles signals and readiness itself."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from command_api.app import create_app
from command_api.settings import ApiSettings
from kinora.local.errors import ChildFailed, PortTaken


async def serve_http(settings: ApiSettings, stop: asyncio.Event, *, ready: Callable[[], None]) -> None:
    """Serve until `stop` is set; `ready` is called once connections are accepted.

    Raises:
        ChildFailed: the application does not start, or its port is taken.
    """
    configuration = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        ws_max_size=2**20,
        timeout_graceful_shutdown=5,
    )
    server = _Server(configuration, ready)
    serving = asyncio.create_task(server.serve([_listening(settings)]), name="http")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    server.should_exit = True
    await serving
    if not server.started:
        raise ChildFailed("the API did not start; see the log above")


def _listening(settings: ApiSettings) -> socket.socket:
    # Here rather than in uvicorn, which would end the whole process when the port is taken.
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise PortTaken(
            f"the API cannot listen on {settings.host}:{settings.port}: {error.strerror};"
            " end what listens there, or change host or port in the settings"
        ) from error


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
