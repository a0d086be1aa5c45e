"""A data folder that an earlier version made: what it did not know yet is added, and nothing is lost."""

import json
from pathlib import Path

import pytest

from kinora.local.errors import DataFolderRefused
from kinora.local.folder import DataFolder
from kinora.local.ports import kept_ports
from kinora.local.secrets import kept_secrets


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    return folder


def rewrite(file: Path, *, without: tuple[str, ...] = (), **more: object) -> None:
    kept = {name: value for name, value in json.loads(file.read_text()).items() if name not in without}
    file.write_text(json.dumps(kept | more))


def test_servers_that_came_later_get_ports_and_the_others_keep_theirs(folder: DataFolder) -> None:
    first = kept_ports(folder)
    later = ("orchestrator_metrics", "agent_metrics")
    rewrite(folder.ports, without=later)

    completed = kept_ports(folder)

    assert completed.model_dump(exclude=set(later)) == first.model_dump(exclude=set(later))
    assert len(set(completed.model_dump().values())) == len(completed.model_dump())
    assert kept_ports(folder) == completed


def test_damaged_ports_are_named(folder: DataFolder) -> None:
    kept_ports(folder)
    rewrite(folder.ports, nats=["many"])
    with pytest.raises(DataFolderRefused, match=r"nats.*delete it"):
        kept_ports(folder)
    folder.ports.write_text("[1]")
    with pytest.raises(DataFolderRefused, match="delete it"):
        kept_ports(folder)


def test_keys_that_came_later_are_made_and_kept_beside_the_former_ones(folder: DataFolder) -> None:
    first = kept_secrets(folder)
    rewrite(folder.secrets, without=("nats_operator_seed",), former_field="kept for a way back")

    completed = kept_secrets(folder)

    assert completed.model_copy(update={"nats_operator_seed": first.nats_operator_seed}) == first
    assert completed.nats_operator_seed != first.nats_operator_seed
    assert kept_secrets(folder) == completed
    assert json.loads(folder.secrets.read_text())["former_field"] == "kept for a way back"
    assert folder.secrets.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["personal_key_hex", "postgres_password"])
def test_a_key_that_opens_data_is_never_made_anew(folder: DataFolder, name: str) -> None:
    kept_secrets(folder)
    rewrite(folder.secrets, without=(name,))
    before = folder.secrets.read_text()

    with pytest.raises(DataFolderRefused, match=f"lacks {name}; restore it"):
        kept_secrets(folder)

    assert folder.secrets.read_text() == before


def test_damaged_secrets_are_named_and_not_quoted(folder: DataFolder) -> None:
    kept_secrets(folder)
    rewrite(folder.secrets, s3_secret_key=["canary"])

    with pytest.raises(DataFolderRefused, match="damaged at s3_secret_key") as refused:
        kept_secrets(folder)

    assert "canary" not in str(refused.value)
