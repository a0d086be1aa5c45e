"""A stream stands still when it is behind for a while, and that was seen several times."""

from typing import Any

import pytest

from command_api.audit import stream
from command_api.audit.stream import STALLED_LOOKS, STALLED_SECONDS, StreamAudit


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stream, "time", clock)
    return clock


def audit() -> StreamAudit:
    nothing: Any = None
    return StreamAudit(nothing, nothing, nothing, nothing, "log_1")


def test_quick_looks_alone_are_no_alarm(clock: Clock) -> None:
    one = audit()
    assert not any(one._stands_still(5, 9) for _ in range(STALLED_LOOKS * 10))


def test_a_long_pause_alone_is_no_alarm(clock: Clock) -> None:
    """As when the auditor itself was frozen."""
    one = audit()
    one._stands_still(5, 9)
    clock.now += STALLED_SECONDS * 10
    assert not one._stands_still(5, 9)


@pytest.mark.parametrize(("moves", "stands"), [(0, True), (1, False)])
def test_behind_and_unmoved(clock: Clock, moves: int, stands: bool) -> None:
    one, position, said = audit(), 5, False
    for _ in range(STALLED_LOOKS + 1):
        said = one._stands_still(position, 99)
        clock.now += STALLED_SECONDS / STALLED_LOOKS + 1
        position += moves
    assert said is stands
