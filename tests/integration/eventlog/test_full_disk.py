"""A disk that is full while the log is written: nothing is stored, and all is well once there is room."""

import json
import subprocess
import sys
from pathlib import Path

from tests.mounting import IN_OWN_MOUNTS, need_own_mounts


def test_an_append_to_a_full_disk_stores_nothing_and_works_again_with_room(tmp_path: Path) -> None:
    need_own_mounts()
    done = subprocess.run(
        [
            *IN_OWN_MOUNTS,
            sys.executable,
            "-m",
            "tests.integration.eventlog.full_disk",
            str(tmp_path / "data"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert 0 < found["stored"] < 20
    assert "disk is full" in found["refusal"]
    assert "free space" in found["refusal"]
    assert found["read_when_full"] == found["stored"] + 1  # the refused one left nothing behind
    assert not found["command_when_full"]
    assert found["read_after"] == found["stored"] + 2
