"""Waits that several modules share: growing delays, and tasks that never outlive their owner."""

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Backoff:
    """Delays that double from `first` to `longest` seconds, with jitter so that nodes spread out."""

    def __init__(self, first: float = 0.2, longest: float = 5.0) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    async def wait(self) -> None:
        delay = self._next * random.uniform(0.75, 1.25)  # noqa: S311 - spreading load, not secrecy
        self._next = min(self._next * 2, self._longest)
        await asyncio.sleep(delay)

    def reset(self) -> None:
        self._next = self._first


async def end(task: "asyncio.Task[Any]") -> None:
    """Cancel `task` and wait until it is over, whatever it raises: its owner has already decided."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not report it as never looked at


async def all_of(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all at once and give their results in order; the first failure ends the others and is raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            await end(task)


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator["asyncio.Task[None]"]:
    """A background task that lives as long as the block; when it breaks, so does the block."""
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            try:
                yield task
            finally:
                task.cancel()
    except BaseExceptionGroup as group_of_one:
        raise group_of_one.exceptions[0] from None


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None when `stop` is set first; `work` is over either way."""
    task = asyncio.create_task(work)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await end(stopped)
        await end(task)
