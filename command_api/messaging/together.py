"""Runs endless tasks as one: when any of them ends, all of them do.

Not an `asyncio.TaskGroup`, because that cancels each task once. Before Python 3.12 `asyncio.wait_for`, on
which nats-py is built, loses a cancellation that arrives together with its result, and the task lives on.
"""

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any

CANCEL_AGAIN_SECONDS = 0.5


async def run_together(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Run all until the first one returns or fails; the others are then cancelled and waited for.

    Raises:
        Exception: what the first one failed with.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(tasks)
    for task in done:
        task.result()


async def end(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel all until they are over, whatever they end with."""
    cancelled: asyncio.CancelledError | None = None
    while waiting := [task for task in tasks if not task.done()]:
        for task in waiting:
            task.cancel()
        try:
            await asyncio.wait(waiting, timeout=CANCEL_AGAIN_SECONDS)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: only the first failure is told
    if cancelled is not None:
        raise cancelled
