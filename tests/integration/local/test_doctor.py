"""What the doctor says about processes, ports and files that are really in a bad way."""

import json
import socket
import sys
from pathlib import Path

import pytest

from kinora.doctor.processes import data_folder, processes
from kinora.local.child import Child, Program
from kinora.local.folder import DataFolder
from kinora.local.lock import FolderLock
from kinora.local.ports import kept_ports


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    return folder


async def orchestrator(folder: DataFolder) -> Child:
    line = json.dumps({"level": "error", "event": "the disk is full", "role": "orchestrator"})
    code = f"import time; print({line!r}, flush=True); time.sleep(600)"
    child = Child(Program("orchestrator", [sys.executable, "-c", code], {}), folder)
    await child.start()

    async def spoke() -> bool:
        return "full" in child.log_end()

    await child.ready(spoke, seconds=20)
    return child


async def test_a_dead_role_is_named_with_the_end_of_its_log(folder: DataFolder) -> None:
    child = await orchestrator(folder)
    with FolderLock(folder):
        assert [(found.name, found.verdict) for found in processes(folder)] == [("processes", "ok")]
        assert child._process is not None
        child._process.kill()
        assert await child.ended(seconds=10)

        (found,) = processes(folder)

    assert (found.name, found.verdict) == ("orchestrator", "failed")
    assert "the disk is full" in found.detail
    assert "orchestrator.log" in found.remedy


async def test_what_a_dead_service_left_behind_is_named(folder: DataFolder) -> None:
    child = await orchestrator(folder)
    try:
        (found,) = processes(folder)
    finally:
        await child.stop()

    assert (found.name, found.verdict) == ("left over", "failed")
    assert f"orchestrator (process {child.pid})" in found.detail


def test_a_service_that_cannot_start_because_of_a_port_is_told_so(folder: DataFolder) -> None:
    ports = kept_ports(folder)
    assert {found.name: found.verdict for found in processes(folder)} == {
        "processes": "failed",
        "ports": "ok",
    }
    with socket.create_server(("127.0.0.1", ports.nats)):
        found = next(each for each in processes(folder) if each.name == "ports")

    assert found.verdict == "failed"
    assert f"{ports.nats} (nats)" in found.detail


def test_files_that_others_can_read_are_named_with_their_remedy(folder: DataFolder) -> None:
    folder.secrets.write_text("{}")
    folder.secrets.chmod(0o644)

    found = next(each for each in data_folder(folder) if each.verdict == "failed")

    assert str(folder.secrets) in found.detail
    assert found.remedy == f"chmod 600 {folder.secrets}"
