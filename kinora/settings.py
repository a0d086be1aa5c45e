"""The only place that reads environment and settings files; packages get what they need as arguments."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from kinora.local.private_file import revealed_json, write_private
from schemas.base import Message
from schemas.errors import KinoraError

HOME_VARIABLE = "KINORA_HOME"
SETTINGS_VARIABLE = "KINORA_SETTINGS_FILE"
"""Path of a role's settings as JSON: `kinora up` writes one per role, production mounts its own."""

S = TypeVar("S", bound=Message)


class SettingsRefused(KinoraError):
    """Settings that are missing or wrong."""

    code = "settings"


def data_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where everything of this installation lives: KINORA_HOME, or a folder in the user's home."""
    named = environment.get(HOME_VARIABLE)
    folder = Path(named).expanduser() if named else Path.home() / ".local" / "share" / "kinora"
    return folder.absolute()


def read_settings(kind: type[S], environment: Mapping[str, str] = os.environ) -> S:
    """The settings file that the environment names.

    Raises:
        SettingsRefused: when it is not named, cannot be read, or a field is wrong.
    """
    named = environment.get(SETTINGS_VARIABLE)
    if not named:
        raise SettingsRefused(
            f"{SETTINGS_VARIABLE} is not set; set it to the path of a JSON file with {kind.__name__},"
            " or run `kinora up`, which runs every role with its own"
        )
    try:
        return kind.model_validate_json(Path(named).read_text())
    except OSError as error:
        raise SettingsRefused(f"{SETTINGS_VARIABLE}={named} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        # Neither message nor cause may quote the input: it holds secrets.
        raise SettingsRefused(f"{named} is not valid {kind.__name__}: {_wrong(error)}") from None


def overridden(settings: S, role: str, file: Path, *, roles: Collection[str]) -> S:
    """`settings` with what the data folder's `file` says for `role`, as ``{"agent": {"cache_bytes": 0}}``.

    What `kinora up` decides by itself (addresses, secrets, ids) cannot be set there.

    Raises:
        SettingsRefused: when the file cannot be read, or a field is unknown, wrong or not to be set.
    """
    try:
        said = json.loads(file.read_text())
    except FileNotFoundError:
        return settings
    except (OSError, ValueError) as error:
        raise SettingsRefused(f"{file} cannot be read: {error}; correct or remove it") from error
    fields = said.get(role, {}) if isinstance(said, dict) and set(said) <= set(roles) else None
    if not isinstance(fields, dict):
        raise SettingsRefused(
            f'{file} must look like {{"{role}": {{"field": value}}}}, with roles of {", ".join(roles)};'
            " correct or remove it"
        )
    free = sorted(set(type(settings).model_fields) - settings.model_fields_set)
    if strange := sorted(set(fields) - set(free)):
        raise SettingsRefused(
            f"{file}: {role}.{strange[0]} cannot be set; what can be set is {', '.join(free) or 'nothing'}"
        )
    try:
        return type(settings).model_validate(settings.model_dump() | fields)
    except ValidationError as error:
        raise SettingsRefused(f"{file}: {role}.{_wrong(error)}") from None


def write_settings(path: Path, settings: Message) -> None:
    """Write a role's settings, secrets revealed, for `read_settings`; readable by the owner only."""
    write_private(path, revealed_json(settings))


def _wrong(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, part['loc'])) or 'file'}: {part['msg']}"
        for part in error.errors(include_input=False, include_url=False)
    )
