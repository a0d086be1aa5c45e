"""What `kinora up` says before anything runs."""

from pathlib import Path

import pytest

from kinora.local.errors import DataFolderRefused
from kinora.local.folder import DataFolder
from kinora.local.lock import FolderLock
from kinora.settings import SettingsRefused
from kinora.supervisor import Supervisor


async def test_a_folder_in_use_is_refused_before_anything_is_announced(tmp_path: Path) -> None:
    said: list[str] = []
    folder = DataFolder(tmp_path / "home")
    folder.prepare()
    with FolderLock(folder), pytest.raises(DataFolderRefused, match="is in use by process"):
        async with Supervisor(folder.root, on_event=lambda _phase, message: said.append(message)):
            pass
    assert said == []


async def test_an_unknown_field_is_refused_before_anything_is_announced(tmp_path: Path) -> None:
    said: list[str] = []
    folder = DataFolder(tmp_path / "home")
    folder.prepare()
    folder.settings.write_text('{"agent": {"cash_bytes": 0}}')
    with pytest.raises(SettingsRefused, match="did you mean cache_bytes"):
        async with Supervisor(folder.root, on_event=lambda _phase, message: said.append(message)):
            pass
    assert said == []
