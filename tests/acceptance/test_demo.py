"""`make demo` as a person runs it: the report is whole, the pictures exist, nothing is left running."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import psutil
import pytest

from kinora.client import Json
from kinora.demo.findings import Result, Training
from tests.service import KINORA, read_report

pytestmark = pytest.mark.timeout(300)

ENVIRONMENT = os.environ | {"NO_COLOR": "1", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
"""Tests share the cores with one another: threads of models this small would only wait, and busily."""
SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "reproduce_answers.py"


@dataclass(frozen=True)
class Demo:
    """What a person has after it."""

    output: Path
    said: str
    report: Json


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    output = tmp_path_factory.mktemp("demo") / "demo-output"
    done = subprocess.run(
        [KINORA, "demo", "--output", str(output)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Demo(output, done.stdout, read_report(output))


def test_it_trains_for_real_and_leaves_nothing_running(demo: Demo) -> None:
    report = demo.report
    assert set(report) == {field.name for field in fields(Result)}
    assert set(report["ordinary"]) == {field.name for field in fields(Training)}
    for training, kind in ((report, "TEMPORAL_LORA"), (report["ordinary"], "LORA")):
        assert training["status"] == "succeeded"
        assert training["loss_last"] < training["loss_first"]
        assert training["held_out_loss_after"] < training["held_out_loss_before"]
        assert training["token_accuracy_after"] > training["token_accuracy_before"]
        assert training["job_id"] in demo.said
        adapter = Path(training["adapter_dir"])
        assert adapter.is_absolute()
        assert json.loads((adapter / "adapter_config.json").read_text("utf-8"))["peft_type"] == kind
    assert report["accuracy_after"] > report["accuracy_before"] + 0.3
    assert (demo.output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "Audit trail" in demo.said
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(demo.output) in " ".join(process.info["cmdline"] or ())
    ]
    assert left == []


def test_it_shows_what_temporal_aware_lora_does(demo: Demo) -> None:
    """Half is the most that an adapter can reach on this base without looking along time."""
    report = demo.report
    assert report["direction_after"] >= 0.9
    assert report["ordinary"]["direction_after"] <= 0.55
    assert report["trainable_parameters"] < 1.03 * report["ordinary"]["trainable_parameters"]
    assert f"temporal-aware LoRA █{'█' * 20}" in demo.said


def test_both_adapters_give_their_answers_again_without_kinora(demo: Demo) -> None:
    """The ordinary one by stock PEFT, the temporal one with the loader beside the script."""
    runs = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *(str(demo.output / folder) for folder in folders)],
            cwd=demo.output,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for adapter in ("adapter", "adapter-ordinary")
        for folders in [("base-model", adapter, "sample-clips")]
    ]
    told = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert all("48 of 48 answers are the recorded ones" in each for each in told)
