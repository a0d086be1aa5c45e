"""A child is private, logged, and ended."""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kinora.local.child import Child, Program
from kinora.local.errors import ChildFailed
from kinora.local.folder import DataFolder


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    return folder


def python(code: str, *, stop_seconds: float = 10.0, environment: dict[str, str] | None = None) -> Program:
    return Program(
        name="child",
        command=[sys.executable, "-c", code],
        environment=environment or {},
        stop_seconds=stop_seconds,
    )


async def test_it_has_a_session_of_its_own_so_that_ctrl_c_is_only_ours(folder: DataFolder) -> None:
    child = Child(python("import time; time.sleep(600)"), folder)
    await child.start()
    try:
        assert child.pid is not None
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
        assert psutil.Process(child.pid).environ().keys() <= {"LC_CTYPE"}
    finally:
        await child.stop()
    assert child.exit_code == -signal.SIGTERM


async def test_a_log_that_is_full_is_turned_over_while_it_is_written(folder: DataFolder) -> None:
    chatty = (
        "import itertools, time\nfor n in itertools.count(): print(n, 'x' * 90, flush=True); time.sleep(1e-4)"
    )
    program = replace(python(chatty), log_bytes=20_000)
    child = Child(program, folder)
    await child.start()
    try:
        while not (folder.logs / "child.log.4").exists():
            await child.bound_log()
            await asyncio.sleep(0.01)
    finally:
        await child.stop()

    files = [folder.logs / f"child.log{end}" for end in (".4", ".3", ".2", ".1", "")]
    numbers = [int(line.split()[0]) for file in files for line in file.read_text().splitlines() if line]
    assert numbers == sorted(set(numbers)), "a line stands twice or out of order"
    assert len(numbers) >= 0.99 * (numbers[-1] - numbers[0] + 1), "more than a line at a cut is lost"
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert sorted(file.name for file in folder.logs.iterdir()) == sorted(file.name for file in files)


async def test_one_that_does_not_stop_is_killed(folder: DataFolder) -> None:
    deaf = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    child = Child(python(deaf, stop_seconds=0.1), folder)
    await child.start()

    async def deafened() -> bool:
        return "deaf" in child.log_end()

    await child.ready(deafened, seconds=20)
    await child.stop()
    assert child.exit_code == -signal.SIGKILL


async def test_an_early_end_is_told_with_the_end_of_its_log(folder: DataFolder) -> None:
    child = Child(python("import sys; print('no such disk', file=sys.stderr); sys.exit(7)"), folder)
    await child.start()

    async def never() -> bool:
        return False

    with pytest.raises(ChildFailed, match=r"(?s)ended with code 7.*no such disk"):
        await child.ready(never, seconds=20)


async def test_a_missing_program_is_named(folder: DataFolder) -> None:
    child = Child(Program(name="ghost", command=["/nowhere/ghost"], environment={}), folder)
    with pytest.raises(ChildFailed, match="/nowhere/ghost"):
        await child.start()


async def test_logs_of_earlier_starts_are_kept_five_times(folder: DataFolder) -> None:
    for number in range(7):
        child = Child(python(f"print({number})"), folder)
        await child.start()
        assert await child.ended(seconds=20)
    kept = {path.name: path.read_text().strip() for path in folder.logs.iterdir()}
    assert kept == {
        "child.log": "6",
        "child.log.1": "5",
        "child.log.2": "4",
        "child.log.3": "3",
        "child.log.4": "2",
    }
