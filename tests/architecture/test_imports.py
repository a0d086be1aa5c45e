"""The import rules hold: as contracts over the source, and in fresh interpreters at run time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "av", "pyarrow")

CONTROL_PROCESSES = {
    "api": "command_api.app",
    "orchestrator": "command_api.orchestrator",
    "projections": "projections.run",
    "auditor": "command_api.auditor",
    "agent": "trainer_agent.run",
    "cli": "kinora.__main__",
    "supervisor": "kinora.supervisor",
}


def test_the_import_contracts_are_kept() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", CONTROL_PROCESSES.values(), ids=CONTROL_PROCESSES.keys())
def test_a_control_process_starts_without_torch(module: str) -> None:
    program = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}

    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "module", ["qlora_engine.updates", "qlora_engine.data.captions", "qlora_engine.data.video"]
)
def test_the_torch_free_parts_of_the_engine_stay_so(module: str) -> None:
    program = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert "torch" not in json.loads(done.stdout)
