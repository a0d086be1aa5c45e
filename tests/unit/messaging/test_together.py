"""Tasks that run together end together, even one that loses a cancellation."""

import asyncio

import pytest

from command_api.messaging.together import run_together, unwound


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


class Closing:
    """Takes several turns to close, as what talks to servers does."""

    def __init__(self, turns: float = 3) -> None:
        self.turns = turns
        self.began = asyncio.Event()
        self.closed = False

    async def close(self) -> None:
        self.began.set()
        while self.turns:
            self.turns -= 1
            await asyncio.sleep(0)
        self.closed = True

    async def held(self, seconds: float = 20) -> None:
        async with unwound(seconds) as stack:
            stack.push_async_callback(self.close)
            await asyncio.Event().wait()


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


async def test_what_is_open_is_closed_to_its_end_however_often_it_is_cancelled() -> None:
    closing = Closing(turns=50)
    task = asyncio.create_task(closing.held())
    await asyncio.sleep(0)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()
    assert closing.closed


async def test_what_does_not_close_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    closing = Closing(turns=float("inf"))
    task = asyncio.create_task(closing.held(seconds=0.01))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert closing.began.is_set()
    assert not closing.closed
    assert "did not close within 0.01 s" in caplog.text


async def test_a_failure_to_close_is_told() -> None:
    async def fail_at_the_end() -> None:
        async with unwound() as stack:
            stack.push_async_callback(fail)

    with pytest.raises(LookupError):
        await fail_at_the_end()


async def test_a_failure_inside_is_told_and_everything_closed() -> None:
    closing = Closing()

    async def fail_with_it_open() -> None:
        async with unwound() as stack:
            stack.push_async_callback(closing.close)
            await fail()

    with pytest.raises(LookupError):
        await fail_with_it_open()
    assert closing.closed
