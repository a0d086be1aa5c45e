"""One place that says how the orchestrator connects to NATS, so that no client ever gives up for good."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from nats.aio.client import Client
from nats.errors import ConnectionClosedError, ConnectionReconnectingError, NoRespondersError
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.errors import NoStreamResponseError, ServiceUnavailableError

from command_api.nats_auth.rights import EVERYTHING, Rights
from command_api.nats_auth.users import ControlUser, FreshCredentials
from schemas.settings import NatsSettings

logger = logging.getLogger(__name__)

UNREACHABLE = (
    TimeoutError,
    NatsTimeoutError,
    NoRespondersError,
    NoStreamResponseError,
    ServiceUnavailableError,
    ConnectionClosedError,
    ConnectionReconnectingError,
    OSError,
)
"""What a request raises while the server is away, restarting, or electing a leader: wait and ask again."""

CHECK_SECONDS = 1.0


class ConnectionGone(Exception):
    """The library closed a client for good, as it does after most errors that the server reports."""


Callback = Callable[[], Awaitable[None]]


def options(user: ControlUser) -> dict[str, Any]:
    """Settings shared by every client of this process.

    The library's defaults close the client for good after two minutes without a server and notice a
    half-open connection only after four.
    """
    return {
        "name": user.name,
        "inbox_prefix": user.inbox_prefix,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 1,
        "connect_timeout": 5,
        "ping_interval": 10,
        "max_outstanding_pings": 2,
        "drain_timeout": 5,
    }


async def log_error(error: Exception) -> None:
    """Connection errors are expected during an outage: one line each, no traceback."""
    logger.warning("NATS: %s; trying again until it answers", str(error) or type(error).__name__)


@asynccontextmanager
async def connect(
    settings: NatsSettings,
    name: str,
    *,
    rights: Callable[[str], Rights] = lambda _user: EVERYTHING,
    reconnected: Callback | None = None,
) -> AsyncIterator[Client]:
    """A client that is connected, however long the server takes to come up, and closed at the end."""
    client, user = Client(), ControlUser.of(settings, name, rights)

    async def on_reconnect() -> None:
        logger.info("NATS: connected again")
        if reconnected is not None:
            await reconnected()

    try:
        await client.connect(
            settings.url,
            user_credentials=FreshCredentials(user.text),
            error_cb=log_error,
            reconnected_cb=on_reconnect,
            **options(user),
        )
        renewing = asyncio.create_task(stay_fresh(client, user))
        try:
            yield client
        finally:
            renewing.cancel()
            await asyncio.wait({renewing})
    finally:
        await close(client)


async def close(client: Client) -> None:
    """Close it for good. The library writes what is pending first and fails on a wire that is cut."""
    try:
        await client.close()
    except (OSError, NatsError) as error:
        logger.debug("NATS: closed without its last words: %s", error)


async def stay_fresh(client: Client, user: ControlUser) -> NoReturn:
    """Connect again, with a new JWT, before the server ends the connection because the old one expired."""
    while True:
        await asyncio.sleep(max(CHECK_SECONDS / 10, user.due - time.monotonic()))
        if time.monotonic() >= user.due:
            await client.force_reconnect()


async def stay_open(*clients: Client) -> NoReturn:
    """Return never; a client that is closed for good has to be replaced by whoever made it.

    Raises:
        ConnectionGone: one of them is.
    """
    while True:
        if any(client.is_closed for client in clients):
            raise ConnectionGone("a connection to NATS was closed for good")
        await asyncio.sleep(CHECK_SECONDS)
