"""Backs up, verifies and restores installations: what `kinora backup` and `kinora restore` do."""

from pathlib import Path

from pydantic import SecretStr

from command_api.backup.create import Keys, Source, back_up
from command_api.backup.errors import KeysLocked
from command_api.backup.folder import BackupFolder
from command_api.backup.manifest import Manifest
from command_api.backup.progress import Report
from command_api.backup.restore import Restored
from command_api.backup.restore import restore as fill
from command_api.backup.verify import check_rows, open_keys, verify
from kinora.local.carried import Carried, carried_by, carried_secrets, read_carried, refuse_other_keys
from kinora.local.folder import DataFolder
from kinora.local.installation import installation, refuse_inside, settings_of
from kinora.local.private_file import write_private
from kinora.local.restoring import refuse_used, restore_home

__all__ = ["create", "has_keys", "keys_in", "refuse_home", "restore", "verify", "write_keys"]


async def create(
    target: Path, home: Path, passphrase: SecretStr | None, settings: Path | None, report: Report
) -> Manifest:
    """Back up the installation of `home`, or of the API's `settings`; without a passphrase, without keys.

    Raises:
        KinoraError: naming what is in the way.
    """
    backup = BackupFolder(target)
    if settings is not None:
        api = settings_of(settings)
        keys = None if passphrase is None else Keys(carried_secrets(api.secrets), passphrase)
        return await back_up(Source(api.postgres, api.s3), backup, keys, report)
    folder = DataFolder(home)
    refuse_inside(target, folder)
    async with installation(folder) as source:
        keys = None if passphrase is None else Keys(carried_by(folder), passphrase)
        return await back_up(source, backup, keys, report)


def refuse_home(backup: BackupFolder, home: Path) -> None:
    """Refuse, before anything is asked or done, a data folder that is in use.

    Raises:
        NotEmpty: naming what is there.
    """
    refuse_inside(backup.root, DataFolder(home))
    refuse_used(DataFolder(home))


async def restore(
    backup: BackupFolder,
    home: Path,
    passphrase: SecretStr | None,
    secrets: Path | None,
    settings: Path | None,
    report: Report,
) -> Restored:
    """Make a new data folder `home` of a backup, or fill the empty servers of the API's `settings`.

    Raises:
        KinoraError: naming what is in the way.
    """
    carried = _carried(backup, passphrase, secrets)
    checked = check_rows(backup, report)
    if settings is None:
        return await restore_home(DataFolder(home), backup, checked, carried, report)
    api = settings_of(settings)
    refuse_other_keys(carried, api.secrets, settings)
    return await fill(backup, checked, api.postgres, api.s3, report)


def has_keys(backup: BackupFolder) -> bool:
    """Whether a passphrase is needed."""
    return bool(backup.manifest().of_kind("keys"))


def keys_in(backup: BackupFolder, manifest: Manifest, passphrase: SecretStr) -> Carried:
    """The keys of a backup.

    Raises:
        KeysLocked: when there are none, or it is not the passphrase.
    """
    content = open_keys(backup, manifest, passphrase.get_secret_value())
    if content is None:
        raise KeysLocked("the backup was made without keys")
    return read_carried(content, str(backup.root))


def write_keys(backup: BackupFolder, file: Path, passphrase: SecretStr) -> None:
    """Write the keys in the clear, for the settings of an installation on several machines."""
    write_private(file, keys_in(backup, backup.manifest(), passphrase).model_dump_json(indent=2) + "\n")


def _carried(backup: BackupFolder, passphrase: SecretStr | None, secrets: Path | None) -> Carried:
    if secrets is not None:
        return read_carried(secrets.read_bytes(), str(secrets))
    if passphrase is None:
        raise KeysLocked(
            "the backup was made without keys; give the secrets.json of the old installation with --secrets"
        )
    return keys_in(backup, backup.manifest(), passphrase)
