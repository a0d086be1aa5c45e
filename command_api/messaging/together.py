"""Runs endless tasks as one: when any of them ends, all of them do.

Not an `asyncio.TaskGroup`, because that cancels each task once. Before Python 3.12 `asyncio.wait_for`, on
which nats-py is built, loses a cancellation that arrives together with its result, and the task lives on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

logger = logging.getLogger(__name__)

CANCEL_AGAIN_SECONDS = 0.5
UNWIND_SECONDS = 30.0


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


@asynccontextmanager
async def unwound(seconds: float = UNWIND_SECONDS) -> AsyncIterator[AsyncExitStack]:
    """An exit stack that is unwound to its end, however often the task is cancelled meanwhile.

    `end` cancels again and again, which would cut an orderly end short: a broker left halfway through it
    stays connected and goes on answering agents beside its successor. What takes longer than `seconds`, as
    a server that is frozen makes it do, is given up.
    """
    stack = AsyncExitStack()
    try:
        yield stack
    finally:
        await _to_its_end(asyncio.ensure_future(stack.aclose()), seconds)


async def _to_its_end(closing: asyncio.Future[None], seconds: float) -> None:
    cancelled: asyncio.CancelledError | None = None
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    while not closing.done() and clock() < until:
        try:
            await asyncio.wait({closing}, timeout=until - clock())
        except asyncio.CancelledError as error:
            cancelled = error
    if not closing.done():
        logger.warning("what was open did not close within %g s and is given up", seconds)
        await end({closing})
    elif cancelled is None:
        closing.result()
    elif (failed := closing.exception()) is not None:
        logger.warning("closing failed: %s", str(failed) or type(failed).__name__)
    if cancelled is not None:
        raise cancelled
