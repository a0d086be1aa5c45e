"""A training that goes well prints nothing: its log is for what people can use."""

from pathlib import Path

import pytest

from tests.engine.child import EngineChild
from tests.engine.conftest import MakeSpec

pytestmark = pytest.mark.slow_process


def test_libraries_are_silent_in_a_clean_training(tmp_path: Path, make_spec: MakeSpec) -> None:
    log = tmp_path / "engine.log"
    with EngineChild(log) as child:
        child.start(make_spec(max_steps=1))
        assert list(child.updates())[-1].kind == "training_done"
        assert child.process.wait(60) == 0
    assert log.read_text("utf-8") == ""
