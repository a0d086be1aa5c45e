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
    loaded = {name.partition(".")[0] for name in _loaded(f"import {module}")}

    assert loaded.isdisjoint(HEAVY)


MODELS = ("transformers", "peft", "accelerate")
TORCH = ("torch", "bitsandbytes", *MODELS)
COMPILERS = ("torch._inductor.compile_fx", "networkx")
OTHERS_WORK = ("boto3", "pandas", "sklearn", "matplotlib", "trl", "datasets")

KINDS_OF_WORK = {
    "updates": ("qlora_engine.updates", (*TORCH, "av", "pyarrow", *OTHERS_WORK)),
    "captions": ("qlora_engine.data.captions", (*TORCH, *OTHERS_WORK)),
    "dataset": ("qlora_engine.data.validation", (*TORCH, *OTHERS_WORK)),
    "decoder": ("qlora_engine.data.decoder", (*TORCH, "pyarrow", *OTHERS_WORK)),
    "probe": ("qlora_engine.probe", (*MODELS, *COMPILERS, "av", "pyarrow", *OTHERS_WORK)),
    "model and training": (
        "qlora_engine.models.validation, qlora_engine.training.attempt",
        (*COMPILERS, *OTHERS_WORK),
    ),
}


@pytest.mark.parametrize(("module", "needless"), KINDS_OF_WORK.values(), ids=KINDS_OF_WORK.keys())
def test_an_engine_imports_what_its_work_needs(module: str, needless: tuple[str, ...]) -> None:
    assert _loaded(
        f"from qlora_engine.imports import import_less; import_less(); import {module}"
    ).isdisjoint(needless)


def test_a_template_is_rendered_without_torch() -> None:
    program = (
        "from qlora_engine.models.template_renderer import Conversation, _library, rendered;"
        "line = Conversation(template='{{ messages[0].text }}', messages=({'text': 'said'},),"
        " ask=False, options={});"
        "assert rendered(line.model_dump_json().encode(), _library()).text == 'said'"
    )
    assert _loaded(program).isdisjoint({"torch", "bitsandbytes", "peft", "accelerate"})


def test_a_server_needs_no_feed() -> None:
    assert _loaded("import kinora.http").isdisjoint({"command_api.feed", "projections"})


def _loaded(program: str) -> set[str]:
    """The modules that a fresh interpreter has after `program`."""
    told = (
        "import json; print(json.dumps([name for name, module in sys.modules.items() if module is not None]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; import sys; {told}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))
