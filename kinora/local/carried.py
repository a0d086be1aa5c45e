"""What moves with the data when an installation is restored elsewhere: its keys, its owner, its agent."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, SecretStr, ValidationError

from command_api.backup.errors import BackupDamaged, KeysLocked
from kinora.local.folder import DataFolder
from kinora.local.private_file import revealed, revealed_json, write_private
from kinora.local.secrets import DATA_KEYS, kept_secrets, moved_secrets
from schemas.base import Message


class Carried(Message):
    """The content of a backup's sealed keys."""

    secrets: dict[str, Any]
    files: dict[str, str] = Field(default_factory=dict)
    """Small files of the data folder, by name."""


def carried_by(folder: DataFolder) -> SecretStr:
    """What a backup of this data folder seals."""
    files = {path.name: path.read_text() for path in _small_files(folder) if path.exists()}
    return _written(Carried(secrets=revealed(kept_secrets(folder)), files=files))


def carried_secrets(secrets: BaseModel) -> SecretStr:
    """What a backup of an installation seals that has no data folder of ours."""
    return _written(Carried(secrets=revealed(secrets)))


def read_carried(content: bytes, source: str) -> Carried:
    """The opposite of `carried_by`; a data folder's `secrets.json` is understood as well.

    Raises:
        BackupDamaged: when it is neither.
        KeysLocked: when a key is missing.
    """
    try:
        found = json.loads(content)
        carried = Carried.model_validate(found if "secrets" in found else {"secrets": found})
    except (ValueError, TypeError, ValidationError):
        # Without the cause: it would quote secrets.
        raise BackupDamaged(f"{source} holds no keys of an installation") from None
    missing = [name for name in DATA_KEYS if name not in carried.secrets]
    if missing:
        raise KeysLocked(f"{source} lacks {', '.join(missing)}; without them nobody could log in")
    return carried


def settle(folder: DataFolder, carried: Carried) -> None:
    """Write the files into a data folder that is being restored."""
    write_private(folder.secrets, revealed_json(moved_secrets(carried.secrets)))
    for path in _small_files(folder):
        if path.name in carried.files:
            write_private(path, carried.files[path.name])


def _small_files(folder: DataFolder) -> tuple[Path, ...]:
    return folder.credentials, folder.agent, folder.agent_seed, folder.settings


def _written(carried: Carried) -> SecretStr:
    return SecretStr(carried.model_dump_json())


def refuse_other_keys(carried: Carried, secrets: BaseModel, source: object) -> None:
    """The servers of a restored installation must be started with the keys of its data.

    Raises:
        KeysLocked: naming the settings that differ.
    """
    given = revealed(secrets)
    other = [name for name in DATA_KEYS if given.get(name) != carried.secrets[name]]
    if other:
        raise KeysLocked(
            f"{', '.join(f'secrets.{name}' for name in other)} in {source} differs from the backup's keys,"
            " which its data need; write them out with `kinora backup keys TARGET FILE` and put them there"
        )
