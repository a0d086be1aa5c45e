"""Who was erased: their access tokens, which nobody can take back, are worth nothing from that moment on."""

import asyncio
from types import TracebackType
from typing import NoReturn, Self

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from command_api.messaging.together import end
from projections.reader import LogReader
from projections.tail import LogTail
from schemas.events.identity import UserErased

_log = structlog.get_logger(__name__)

PAGE = 500
RETRY_SECONDS = 1.0


class ErasedUsers:
    """Follows the shared tail; one set per process."""

    def __init__(self, reader: LogReader, tail: LogTail) -> None:
        self._reader = reader
        self._tail = tail
        self._users: set[str] = set()
        self._news = asyncio.Condition()
        self._position = 0
        self._task: asyncio.Task[NoReturn] | None = None

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._users

    async def add(self, *user_ids: str) -> None:
        """Known here already, before the tail tells of it."""
        if not self._users.issuperset(user_ids):
            async with self._news:
                self._users.update(user_ids)
                self._news.notify_all()

    async def wait(self, user_id: str) -> None:
        """Return when that person was erased."""
        async with self._news:
            await self._news.wait_for(lambda: user_id in self._users)

    async def __aenter__(self) -> Self:
        await self._read()
        self._task = asyncio.create_task(self._follow(), name="erased-users")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            await end([self._task])

    async def _follow(self) -> NoReturn:
        while True:
            await self._tail.wait(self._position)
            try:
                await self._read()
            except (psycopg.OperationalError, PoolTimeout) as error:
                _log.warning("erased_users.unread", reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def _read(self) -> None:
        # Before the rows: whatever is at or before it is in them.
        reached = self._tail.head
        rows = self._tail.since(self._position)
        while rows is None:
            page = await self._reader.page(self._position, PAGE, types=[UserErased.TYPE])
            await self.add(*(row.stream_id for row in page))
            if len(page) < PAGE:
                break
            self._position = page[-1].position
        else:
            await self.add(*(row.stream_id for row in rows if row.type == UserErased.TYPE))
        self._position = max(self._position, reached)
