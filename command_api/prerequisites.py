"""What the API cannot begin without: it waits for it and says so, instead of dying until it is there."""

import asyncio
import itertools

import psycopg
import structlog

from command_api.objects import ObjectStore, ObjectStoreUnavailable
from command_api.settings import ApiSettings

log = structlog.get_logger(__name__)

_CONNECT_SECONDS = 3
_LONGEST_PAUSE_SECONDS = 5.0


async def wait_for_servers(settings: ApiSettings, stop: asyncio.Event) -> bool:
    """Wait until PostgreSQL and the object store answer; False when `stop` was set first.

    NATS is not among them: the API serves without it.
    """
    said = None
    for attempt in itertools.count():
        missing = await _missing(settings)
        if missing is None:
            return True
        if missing != said:
            log.warning("waiting", reason=missing)
            said = missing
        try:
            async with asyncio.timeout(min(_LONGEST_PAUSE_SECONDS, 0.2 * 2 ** min(attempt, 10))):
                await stop.wait()
        except TimeoutError:
            continue
        return False
    raise AssertionError("counting never ends")


async def _missing(settings: ApiSettings) -> str | None:
    """What does not answer, in one sentence."""
    place = f"{settings.postgres.host}:{settings.postgres.port}"
    try:
        connection = await psycopg.AsyncConnection.connect(
            settings.postgres.conninfo(), connect_timeout=_CONNECT_SECONDS
        )
        await connection.close()
    except (psycopg.OperationalError, OSError) as error:
        return f"PostgreSQL at {place} does not answer: {error}"
    try:
        async with ObjectStore(settings.s3) as store:
            await store.ensure_bucket()
    except ObjectStoreUnavailable as error:
        return f"the object store at {settings.s3.endpoint_url} does not answer: {error.message}"
    return None
