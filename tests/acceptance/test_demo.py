"""`make demo` as a person runs it: the report is whole, the pictures exist, nothing is left running."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.service import KINORA, read_report

pytestmark = pytest.mark.timeout(300)


def test_the_demo_trains_for_real_is_reproducible_and_leaves_nothing_running(tmp_path: Path) -> None:
    output = tmp_path / "demo-output"
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "160"}
    done = subprocess.run(
        [KINORA, "demo", "--output", str(output)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    report = read_report(output)
    assert set(report) == {
        *("job_id", "status", "steps", "loss_first", "loss_last", "accuracy_before", "accuracy_after"),
        *("seconds", "adapter_dir", "events"),
    }
    assert report["status"] == "succeeded"
    assert report["loss_last"] < report["loss_first"]
    assert report["accuracy_after"] > report["accuracy_before"] + 0.3
    assert Path(report["adapter_dir"]).is_absolute()
    assert (
        json.loads((Path(report["adapter_dir"]) / "adapter_config.json").read_text())["peft_type"] == "LORA"
    )
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert report["job_id"] in done.stdout
    assert "Audit trail" in done.stdout
    script = Path(__file__).parents[2] / "docs" / "examples" / "reproduce_answers.py"
    folders = (output / "base-model", output / "adapter", output / "sample-clips")
    reproduced = subprocess.run(
        [sys.executable, str(script), *map(str, folders)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert reproduced.returncode == 0, reproduced.stdout + reproduced.stderr
    left = [p for p in psutil.process_iter(["cmdline"]) if str(output) in " ".join(p.info["cmdline"] or ())]
    assert left == []
