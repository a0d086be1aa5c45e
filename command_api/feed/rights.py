"""Whether those who follow may still do so: their membership and its role are looked up every few seconds.

An access token says for some minutes what its bearer may do. A feed lasts longer than the moment in which
that was looked at, so here one query for all connections of the process sees whose right has ended meanwhile.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple, NoReturn, Self

import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from command_api.auth.tokens import SCOPES, Principal

_log = structlog.get_logger(__name__)

_ROLES = """
SELECT asked.user_id, asked.organization_id, asked.workspace_id, membership.role
  FROM unnest(%s::text[], %s::text[], %s::text[]) AS asked (user_id, organization_id, workspace_id)
  LEFT JOIN kinora_memberships AS membership USING (user_id, organization_id, workspace_id)
"""


class Place(NamedTuple):
    """A person in a workspace."""

    user_id: str
    organization_id: str
    workspace_id: str


class Rights:
    """Who follows in this process, and whose right to it has ended."""

    def __init__(
        self,
        pool: AsyncConnectionPool[psycopg.AsyncConnection],
        scope: str,
        *,
        every_seconds: float = 5.0,
    ) -> None:
        self._pool = pool
        self._scope = scope
        self._every_seconds = every_seconds
        self._present: Counter[Place] = Counter()
        self._ended: dict[Place, asyncio.Event] = {}
        self._task: asyncio.Task[NoReturn] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look_again(), name="rights")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @contextmanager
    def watched(self, caller: Principal) -> Iterator[asyncio.Event]:
        """An event that is set when the caller may not follow any more."""
        place = Place(caller.user_id, caller.organization_id, caller.workspace_id)
        self._present[place] += 1
        ended = self._ended.setdefault(place, asyncio.Event())
        try:
            yield ended
        finally:
            self._present[place] -= 1
            if not self._present[place]:
                del self._present[place]
                self._ended.pop(place, None)

    async def check(self) -> None:
        """Look everybody up, and tell those whose right has ended."""
        places = list(self._present)
        if not places:
            return
        async with self._pool.connection() as connection:
            columns = [list(column) for column in zip(*places, strict=True)]
            rows = await (await connection.execute(_ROLES, columns)).fetchall()
        for user_id, organization_id, workspace_id, role in rows:
            if role is None or self._scope not in SCOPES[role]:
                ended = self._ended.pop(Place(user_id, organization_id, workspace_id), None)
                if ended is not None:
                    ended.set()

    async def _look_again(self) -> NoReturn:
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                await self.check()
            except (psycopg.Error, PoolTimeout) as away:
                # Nobody is sent away because the database is: the token's end still bounds everything.
                _log.warning("feed.rights_unknown", reason=str(away))
