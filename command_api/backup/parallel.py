"""Several workers on one queue, whose first failure is told as it is and not as a group."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


async def in_parallel(worker: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run `count` of them to their end; a failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(worker())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
