"""Data folders and settings files: what is carried along, what is refused, and a restore that broke off."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from command_api.backup.create import Keys, Source, back_up
from command_api.backup.errors import BackupDamaged, KeysLocked, NotEmpty
from command_api.backup.folder import BackupFolder, object_path
from command_api.backup.progress import silent
from command_api.settings import ApiSettings, ControlSecrets
from kinora import backups
from kinora.local.carried import carried_by
from kinora.local.errors import DataFolderRefused
from kinora.local.folder import DataFolder
from kinora.local.private_file import write_private
from kinora.local.secrets import OF_THE_SERVERS, kept_secrets
from kinora.local.servers import EmbeddedServers
from kinora.settings import write_settings
from tests.integration.api.running import fresh_secrets
from tests.integration.backup.filled import PASSPHRASE, Filled, rows_of


@pytest.fixture
def settings_file(servers: EmbeddedServers, tmp_path: Path) -> Callable[[Source, ControlSecrets], Path]:
    def write(source: Source, secrets: ControlSecrets) -> Path:
        settings = ApiSettings(
            port=1,
            public_url="http://127.0.0.1:1",
            postgres=source.postgres,
            nats=servers.nats_control,
            s3=source.s3,
            secrets=secrets,
        )
        write_settings(tmp_path / "api.json", settings)
        return tmp_path / "api.json"

    return write


async def test_servers_of_ones_own(
    filled: Filled, empty: Source, settings_file: Callable[[Source, ControlSecrets], Path], tmp_path: Path
) -> None:
    secrets, target, home = fresh_secrets(), tmp_path / "target", tmp_path / "unused"
    await backups.create(target, home, PASSPHRASE, settings_file(filled.source, secrets), silent)
    folder = BackupFolder(target)
    other = secrets.model_copy(update={"index_key_hex": SecretStr("33" * 32)})
    with pytest.raises(KeysLocked, match=r"secrets\.index_key_hex"):
        await backups.restore(folder, home, PASSPHRASE, None, settings_file(empty, other), silent)
    done = await backups.restore(folder, home, PASSPHRASE, None, settings_file(empty, secrets), silent)

    assert done.events == len(rows_of(empty)["kinora_events"]) == len(filled.rows["kinora_events"])
    assert not home.exists()
    backups.write_keys(folder, tmp_path / "keys.json", PASSPHRASE)
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    written = json.loads((tmp_path / "keys.json").read_text())["secrets"]
    assert written["personal_key_hex"] == secrets.personal_key_hex.get_secret_value()


async def test_a_restore_that_broke_off_is_seen_and_repeated(filled: Filled, tmp_path: Path) -> None:
    former = DataFolder(tmp_path / "former")
    former.prepare()
    old = kept_secrets(former)
    write_private(former.credentials, '{"url": "http://127.0.0.1:1", "username": "local"}')
    backup = BackupFolder(tmp_path / "target")
    await back_up(filled.source, backup, Keys(carried_by(former), PASSPHRASE))
    path = backup.root / object_path(filled.checkpoint.sha256)
    whole = path.read_bytes()
    path.write_bytes(b"\x00" + whole[1:-1] + b"\x00")

    home = DataFolder(tmp_path / "home")
    with pytest.raises(BackupDamaged, match="after it was stored"):
        await backups.restore(backup, home.root, PASSPHRASE, None, None, silent)
    with pytest.raises(DataFolderRefused, match="was not finished"):
        await EmbeddedServers(home.root).__aenter__()
    path.write_bytes(whole)
    done = await backups.restore(backup, home.root, PASSPHRASE, None, None, silent)

    assert done.events == len(filled.rows["kinora_events"])
    assert not home.restoring.exists()
    credentials = json.loads(home.credentials.read_text())
    assert credentials["username"] == "local"
    assert credentials["url"] != "http://127.0.0.1:1", "the former installation may still be there"
    new = kept_secrets(home)
    differing = {name for name in type(new).model_fields if getattr(new, name) != getattr(old, name)}
    assert differing == OF_THE_SERVERS
    with pytest.raises(NotEmpty, match=r"credentials\.json"):
        backups.refuse_home(backup, home.root)


async def test_a_backup_without_keys_needs_the_former_secrets(filled: Filled, tmp_path: Path) -> None:
    backup = BackupFolder(tmp_path / "target")
    await back_up(filled.source, backup, None)
    assert not backups.has_keys(backup)
    with pytest.raises(KeysLocked, match="--secrets"):
        await backups.restore(backup, tmp_path / "home", None, None, None, silent)
    (tmp_path / "secrets.json").write_text('{"personal_key_hex": "11"}')
    with pytest.raises(KeysLocked, match="index_key_hex"):
        await backups.restore(backup, tmp_path / "home", None, tmp_path / "secrets.json", None, silent)
    (tmp_path / "secrets.json").write_text("thesis")
    with pytest.raises(BackupDamaged, match="no keys"):
        await backups.restore(backup, tmp_path / "home", None, tmp_path / "secrets.json", None, silent)
    assert not (tmp_path / "home").exists()
