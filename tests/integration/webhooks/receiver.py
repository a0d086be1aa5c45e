"""A receiver of webhooks on this machine: keeps what it gets, and answers what the test tells it to."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Answering = Callable[["Got"], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Got:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Inbox:
    """What came, and what is answered: `answers` one by one, then 204."""

    url: str = ""
    got: list[Got] = field(default_factory=list)
    answers: list[int | web.Response] = field(default_factory=list)
    answering: Answering | None = None
    busy: int = 0
    busiest: int = 0

    @property
    def ids(self) -> list[str]:
        return [each.id for each in self.got]

    async def take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        got = Got(request.path, {name.lower(): value for name, value in request.headers.items()}, body)
        self.got.append(got)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            if self.answering is not None:
                return await self.answering(got)
            answer = self.answers.pop(0) if self.answers else 204
            return web.Response(status=answer) if isinstance(answer, int) else answer
        finally:
            self.busy -= 1


@asynccontextmanager
async def listening() -> AsyncIterator[Inbox]:
    inbox = Inbox()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", inbox.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    inbox.url = f"http://127.0.0.1:{port}/kinora"
    try:
        yield inbox
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task does."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - of another task, which knows nothing of tests
            await asyncio.sleep(0.005)
