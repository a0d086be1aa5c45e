"""The engine as a real child: it trains, stops, fails by name, and never outlives its parent."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from qlora_engine.failures import is_out_of_memory
from qlora_engine.parent import ORPHANED
from qlora_engine.process import ABANDONED, FAILED, MISUSED
from qlora_engine.updates import UPDATE, ProbeResult, Start, Stop
from schemas.training import DatasetValidationSpec
from tests.engine.child import EngineChild
from tests.engine.conftest import CLIPS, MakeSpec

pytestmark = pytest.mark.slow_process
TIMEOUT = 60


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


@pytest.fixture
def child(log: Path) -> Iterator[EngineChild]:
    with EngineChild(log) as engine:
        yield engine


def test_a_training_from_start_to_adapter(child: EngineChild, make_spec: MakeSpec, log: Path) -> None:
    """One that goes well prints nothing: its log is for what people can use."""
    child.start(make_spec(max_steps=4))
    updates = list(child.updates())
    assert child.process.wait(TIMEOUT) == 0
    assert updates[-1].kind == "training_done"
    assert [update.kind for update in updates].count("step_taken") == 4
    assert Path(updates[-1].adapter_folder, "adapter_config.json").is_file()
    assert log.read_text("utf-8") == ""


@pytest.mark.parametrize("how", ["immediate", "sigterm"])
def test_stops(how: str, child: EngineChild, make_spec: MakeSpec) -> None:
    """What a graceful one by its line leaves is tested with the agent that sends it."""
    child.start(make_spec(max_steps=100_000, held_out_fraction=0, checkpoint_every_steps=100_000))
    child.until("step_taken")
    if how == "sigterm":
        child.process.send_signal(signal.SIGTERM)
    else:
        child.send(Stop(mode="immediate"))
    stopped = list(child.updates())[-1]
    assert child.process.wait(TIMEOUT) == 0
    assert stopped.kind == "training_stopped"
    assert (stopped.adapter_folder is None) == (how == "immediate")


def test_a_spec_that_cannot_be_read_is_wrong_usage(tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text('{"kind": "train"}', "utf-8")
    for name, error in ((file, "job_id"), (tmp_path / "none.json", "No such file")):
        command = [sys.executable, "-m", "qlora_engine", "--spec", str(name)]
        ran = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)
        assert ran.returncode == MISUSED
        assert f"{name} is not the spec of a work" in ran.stderr.decode()
        assert error in ran.stderr.decode()


def test_end_of_input_ends_it(child: EngineChild, make_spec: MakeSpec) -> None:
    child.start(make_spec(max_steps=100_000, held_out_fraction=0))
    child.until("step_taken")
    child.close_stdin()
    assert child.process.wait(TIMEOUT) == ORPHANED


def test_it_dies_with_its_parent_even_when_stdin_stays_open(tmp_path: Path, make_spec: MakeSpec) -> None:
    """Somebody else holds the write end of stdin, so only the parent's death can end the engine."""
    start = Start(spec=make_spec(max_steps=100_000, held_out_fraction=0)).model_dump_json()
    code = (
        "import os, subprocess, sys\n"
        "engine = subprocess.Popen(\n"
        "    [sys.executable, '-m', 'qlora_engine', '--parent-pid', str(os.getpid())],\n"
        "    stdin=int(sys.argv[1]), stdout=int(sys.argv[2]))\n"
        "print(engine.pid, flush=True)\n"
        "engine.wait()\n"
    )
    stdin_read, stdin_write = os.pipe()
    out_read, out_write = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(stdin_read), str(out_write)],
        stdout=subprocess.PIPE,
        pass_fds=(stdin_read, out_write),
    )
    os.close(stdin_read)
    os.close(out_write)
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    os.write(stdin_write, start.encode() + b"\n")
    with os.fdopen(out_read, "rb") as updates:
        for line in updates:
            if UPDATE.validate_json(line).kind == "step_taken":
                break
        parent.kill()
        parent.communicate()
        psutil.wait_procs([engine], timeout=TIMEOUT)
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    os.close(stdin_write)


def test_a_failure_is_the_last_update(child: EngineChild, make_spec: MakeSpec) -> None:
    spec = make_spec()
    Path(spec.output_folder).mkdir()
    broken = Path(spec.output_folder) / "manifest.json"
    broken.write_text("{}", "utf-8")
    child.start(spec.model_copy(update={"manifest_file": str(broken)}))
    failed = list(child.updates())[-1]
    assert child.process.wait(TIMEOUT) == FAILED
    assert failed.kind == "engine_failed"
    assert (failed.code, failed.retryable) == ("data_unreadable", False)
    assert "manifest.json" in failed.message


def test_a_first_line_that_is_no_start(child: EngineChild) -> None:
    assert child.process.stdin is not None
    child.process.stdin.write(b'{"kind": "begin"}\n')
    child.process.stdin.flush()
    assert child.process.wait(TIMEOUT) == MISUSED


def test_a_dataset_is_validated(child: EngineChild, clips: Path, tmp_path: Path) -> None:
    child.start(DatasetValidationSpec(dataset_folder=str(clips), output_folder=str(tmp_path / "judged")))
    verdict = list(child.updates())[-1]
    assert child.process.wait(TIMEOUT) == 0
    assert verdict.kind == "dataset_verdict"
    assert verdict.problems == ()
    assert verdict.manifest_file is not None
    assert len(json.loads(Path(verdict.manifest_file).read_bytes())["clips"]) == CLIPS


def test_a_validation_is_abandoned_when_asked_to_stop(
    child: EngineChild, clips: Path, tmp_path: Path
) -> None:
    child.start(DatasetValidationSpec(dataset_folder=str(clips), output_folder=str(tmp_path / "judged")))
    child.send(Stop(mode="graceful"))
    assert child.process.wait(TIMEOUT) == ABANDONED
    assert not (tmp_path / "judged" / "manifest.json").exists()


def test_memory_that_does_not_suffice_is_recognised() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_the_probe_runs_a_real_kernel() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "qlora_engine", "--probe"], capture_output=True, check=True, timeout=TIMEOUT
    )
    result = UPDATE.validate_json(found.stdout)
    assert isinstance(result, ProbeResult)
    assert result.capabilities.four_bit_kernel
    assert result.capabilities.memory_bytes > 1 << 30
    assert result.capabilities.versions["bitsandbytes"][0].isdigit()
