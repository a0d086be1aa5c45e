"""Tasks that run together end together, even one that loses a cancellation."""

import asyncio

import pytest

from command_api.messaging.together import run_together


class Ended:
    """Counts what was cancelled."""

    def __init__(self, *, deaf: int = 0) -> None:
        self.cancellations = 0
        self._deaf = deaf

    async def run(self) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancellations += 1
                if self.cancellations > self._deaf:
                    raise


async def fail() -> None:
    raise LookupError("no")


async def test_the_first_failure_ends_all_and_is_told() -> None:
    other = Ended()
    with pytest.raises(LookupError):
        await run_together(other.run(), fail())
    assert other.cancellations == 1


async def test_the_first_return_ends_all() -> None:
    other = Ended()
    await run_together(other.run(), asyncio.sleep(0))
    assert other.cancellations == 1


async def test_a_task_that_lost_its_cancellation_is_cancelled_again() -> None:
    other = Ended(deaf=1)
    await run_together(other.run(), asyncio.sleep(0))
    assert other.cancellations == 2


async def test_cancelling_it_ends_all() -> None:
    other = Ended(deaf=1)
    together = asyncio.create_task(run_together(other.run(), asyncio.Event().wait()))
    await asyncio.sleep(0)
    together.cancel()
    with pytest.raises(asyncio.CancelledError):
        await together
    assert other.cancellations == 2
