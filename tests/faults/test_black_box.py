"""A short run of the black box; `make soak MINUTES=n` runs it for as long as one likes."""

from pathlib import Path

import pytest

from tests.faults import black_box

pytestmark = [pytest.mark.slow_process, pytest.mark.timeout(300)]

SECONDS = 15.0
"""At least, and until every kind of fault has happened."""


async def test_callers_and_readers_see_one_history_whatever_happens(tmp_path: Path) -> None:
    run = await black_box.run(tmp_path / "data", SECONDS, seed=1)
    assert run.broken == [], "\n".join(map(str, run.broken))
    happened = {name for name, count in run.faults.items() if count}
    # Each of these did something, rather than only being asked for.
    assert happened >= {"cut", "commit swallowed", "publish swallowed", "a process killed", "JetStream wiped"}
    assert run.epochs > 1
    assert len(run.calls) > 30
    assert run.tries > len(run.calls)
