"""Nothing outlives an owner that was killed, and the next start goes on from there."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from kinora.local.child import Child, Program
from kinora.local.folder import DataFolder
from kinora.local.servers import EmbeddedServers

OWNER = Path(__file__).with_name("owning_servers.py")


DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def start_owner(data: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A process that owns servers, and those servers' processes."""
    owner = subprocess.Popen([sys.executable, str(OWNER), str(data)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        return owner, [psutil.Process(pid) for pid in json.loads(owner.stdout.readline()).values()]


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent died")
async def test_a_killed_owner_leaves_no_process_and_no_damage(tmp_path: Path) -> None:
    data = tmp_path / "data"
    owner, children = start_owner(data)
    family = children + [grandchild for child in children for grandchild in child.children(recursive=True)]
    assert len(family) > len(children)  # PostgreSQL has workers

    owner.kill()
    owner.wait()
    # At once: it must wait for those that are still writing, instead of failing.
    async with EmbeddedServers(data) as servers:
        async with await psycopg.AsyncConnection.connect(servers.postgres.conninfo()) as connection:
            await connection.execute("SELECT 1")
        deadline = time.monotonic() + 30
        while left := [process for process in family if not gone(process)]:
            assert time.monotonic() < deadline, left


async def test_a_leftover_of_a_crash_is_ended_before_the_next_start(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    # Deaf to its owner's end and to polite requests, as a hanging server is.
    program = Program(
        name="sleeper",
        command=[sys.executable, "-c", DEAF],
        environment={},
        stop_seconds=0.2,
    )
    crashed = Child(program, folder)
    await crashed.start()
    await crashed.ready(lambda: says(crashed, "deaf"), seconds=20)
    first = psutil.Process(crashed.pid)
    successor = Child(program, folder)
    await successor.start()
    try:
        assert gone(first)
        assert successor.running
    finally:
        await successor.stop()
        await crashed.stop()
    assert crashed.exit_code == -9


async def says(child: Child, text: str) -> bool:
    return text in child.log_end()
