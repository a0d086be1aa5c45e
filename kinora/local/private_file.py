"""Files that only their owner may read, and that are either whole or absent."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic_core import to_jsonable_python


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text`, mode 0600 from the first byte on; a crash leaves the old file or the new."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename must outlive a power cut: some of these secrets cannot be made again
    finally:
        os.close(folder)


def revealed_json(model: BaseModel) -> str:
    """The model as JSON with its secrets in the clear: for private files only."""
    return json.dumps(revealed(model), indent=2) + "\n"


def revealed(model: BaseModel) -> dict[str, Any]:
    """What `revealed_json` writes."""
    found: dict[str, Any] = to_jsonable_python(_revealed(model.model_dump()))
    return found


def _revealed(value: Any) -> Any:
    if isinstance(
        value, SecretStr
    ):  # pydantic itself would write asterisks, and the file could never be read back
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: _revealed(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_revealed(part) for part in value]
    return value
