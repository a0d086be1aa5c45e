"""The writer waits for company only where there was some, and never for longer than its two milliseconds."""

import asyncio
import queue
from types import SimpleNamespace
from typing import cast

import pytest

from command_api.eventlog.log import EventLog
from command_api.handlers import writer as writing
from command_api.handlers.decision import utc_now
from command_api.handlers.writer import LINGER_SECONDS, LoadUnit, Writer

LATE = 0.0015


class Arrivals:
    """A queue whose units arrive at given times of a clock that only waiting moves on."""

    def __init__(self, *times: float) -> None:
        self.now = 0.0
        self.waits: list[float] = []
        loop = asyncio.new_event_loop()
        self._units = [
            (at, LoadUnit(f"job_{number}", loop.create_future())) for number, at in enumerate(times)
        ]
        loop.close()

    def get(self, block: bool = True, timeout: float | None = None) -> LoadUnit:
        if timeout is not None:
            self.waits.append(timeout)
        until = self.now + (timeout or 0.0)
        if not self._units or self._units[0][0] > until:
            self.now = until
            raise queue.Empty
        at, unit = self._units.pop(0)
        self.now = max(self.now, at)
        return unit

    def get_nowait(self) -> LoadUnit:
        return self.get(block=False)


def writer_of(arrivals: Arrivals, company: int, monkeypatch: pytest.MonkeyPatch) -> Writer:
    """One whose thread never starts, and that took so many commands the last time."""
    monkeypatch.setattr(writing, "time", SimpleNamespace(monotonic=lambda: arrivals.now))
    writer = Writer(cast(EventLog, None), {}, {}, utc_now)
    monkeypatch.setattr(writer, "_queue", arrivals)
    monkeypatch.setattr(writer, "_last_gathered", company)
    return writer


def gathered(writer: Writer) -> int:
    units, stopping = writer._gather(wait=True)
    assert not stopping
    return len(units)


def test_one_caller_alone_is_never_made_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = Arrivals(0.0, LATE)
    assert gathered(writer_of(arrivals, 1, monkeypatch)) == 1
    assert arrivals.waits == []


def test_where_there_was_company_the_late_one_shares_the_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = Arrivals(0.0, LATE)
    assert gathered(writer_of(arrivals, 2, monkeypatch)) == 2
    assert arrivals.waits == [LINGER_SECONDS]


def test_the_wait_is_two_milliseconds_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = Arrivals(0.0, LATE, 2 * LATE)
    writer = writer_of(arrivals, 3, monkeypatch)
    assert gathered(writer) == 2
    assert arrivals.waits == [LINGER_SECONDS, pytest.approx(LINGER_SECONDS - LATE)]
    assert arrivals.now == pytest.approx(LINGER_SECONDS)
    arrivals.now = 2 * LATE
    assert gathered(writer) == 1, "the third one comes with the next"


def test_whoever_waits_already_is_taken_however_late_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = Arrivals(*(0.0,) * 5)
    assert gathered(writer_of(arrivals, 1, monkeypatch)) == 5
