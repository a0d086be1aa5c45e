"""What files and folders contain, as SHA-256, so that a resume and an adapter can name their base."""

import hashlib
from collections.abc import Collection
from pathlib import Path


def file_sha256(file: Path) -> str:
    """The hash of one file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(folder: Path, suffixes: Collection[str] | None = None) -> str:
    """The hash of a folder's file names and contents, as ``sha256sum`` lists them, without hidden files.

    With `suffixes`, only files that have one of these.
    """
    lines = []
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if suffixes is not None and file.suffix not in suffixes:
            continue
        if file.is_file() and not any(part.startswith(".") for part in path.parts):
            lines.append(f"{file_sha256(file)}  {path.as_posix()}\n")
    return hashlib.sha256("".join(sorted(lines, key=lambda line: line[66:])).encode()).hexdigest()
