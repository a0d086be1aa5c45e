"""Reading your own writes: wait, without thread or connection, until a view has seen a position."""

import asyncio
from collections import defaultdict
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from psycopg import AsyncConnection

from projections import catalogue
from projections.listening import PROJECTIONS_CHANNEL, follow


class ViewPositions:
    """How far every view has read, kept by one LISTEN connection per process."""

    def __init__(self, conninfo: str, *, poll_seconds: float = 1.0) -> None:
        self._conninfo = conninfo
        self._poll_seconds = poll_seconds
        self._positions: dict[str, int] = {}
        self._moved: defaultdict[str, asyncio.Condition] = defaultdict(asyncio.Condition)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(
            follow(self._conninfo, PROJECTIONS_CHANNEL, self._wake, poll_seconds=self._poll_seconds),
            name="view-positions",
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def current(self, view: str) -> int:
        """The position that the view's rows show; 0 while it is not known."""
        return self._positions.get(view, 0)

    async def wait_for(self, view: str, position: int, timeout: float = 2.0) -> int:
        """Return the view's position once it has reached `position`, or as it is after `timeout` seconds."""
        moved = self._moved[view]
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout), moved:
                await moved.wait_for(lambda: self.current(view) >= position)
        return self.current(view)

    async def _wake(self, connection: AsyncConnection[Any], payloads: tuple[str, ...]) -> None:
        if payloads:
            for payload in payloads:
                view, position = payload.split()
                await self._set(view, int(position))
        else:
            for status in await catalogue.statuses(connection):
                await self._set(status.view, status.position)

    async def _set(self, view: str, position: int) -> None:
        # Backwards too: after a crash of the server, or a swap, the rows show what the books say.
        if position != self._positions.get(view):
            moved = self._moved[view]
            async with moved:
                self._positions[view] = position
                moved.notify_all()
