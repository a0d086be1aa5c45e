"""The only place that reads environment and settings files; packages get what they need as arguments."""

import os
from collections.abc import Mapping
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
        wrong = "; ".join(
            f"{'.'.join(map(str, part['loc'])) or 'file'}: {part['msg']}"
            for part in error.errors(include_input=False, include_url=False)
        )
        raise SettingsRefused(f"{named} is not valid {kind.__name__}: {wrong}") from None


def write_settings(path: Path, settings: Message) -> None:
    """Write a role's settings, secrets revealed, for `read_settings`; readable by the owner only."""
    write_private(path, revealed_json(settings))
