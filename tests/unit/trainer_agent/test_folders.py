"""One agent per folder, and nothing of the node outside of it leaves as a result."""

from pathlib import Path

import pytest

from schemas.ids import Prefix, new_id
from schemas.work import HeldItem
from trainer_agent.errors import AgentError, WorkFolderInUse
from trainer_agent.folders import locked


def test_a_second_agent_is_refused(tmp_path: Path) -> None:
    second = locked(tmp_path / "work")
    with (
        locked(tmp_path / "work"),
        pytest.raises(WorkFolderInUse, match="give each agent a folder of its own"),
        second,
    ):
        pass
    with locked(tmp_path / "work"):
        pass


def test_an_engine_cannot_name_other_files_as_its_output(tmp_path: Path) -> None:
    with locked(tmp_path / "work") as work:
        folder = work.attempt(HeldItem(item_id=new_id(Prefix.JOB), attempt=1))
        folder.create()
        assert folder.made_by_engine(str(folder.output / "adapter")) == folder.output.resolve() / "adapter"
        (folder.output / "link").symlink_to("/etc")
        for path in (
            "/etc/hostname",
            str(folder.output / ".." / "model"),
            str(folder.output / "link" / "passwd"),
        ):
            with pytest.raises(AgentError) as refused:
                folder.made_by_engine(path)
            assert refused.value.code == "engine_misbehaved"


def test_leftovers_of_an_earlier_run_are_removed(tmp_path: Path) -> None:
    with locked(tmp_path / "work") as work:
        folder = work.attempt(HeldItem(item_id=new_id(Prefix.JOB), attempt=1))
        folder.create()
        (work.path / "probe-x").mkdir()
        work.clean_leftovers()
        assert not folder.path.exists()
        assert not (work.path / "probe-x").exists()
