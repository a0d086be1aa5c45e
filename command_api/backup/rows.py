"""Compressed lines: how parts are written, and read again with their hash checked on the way."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from command_api.backup.errors import BackupDamaged
from command_api.backup.folder import BackupFolder, Digesting, hash_of, part_path
from command_api.backup.manifest import Part

_LEVEL = 4


class PartWriter:
    """Lines into one compressed part."""

    def __init__(self, file: Digesting) -> None:
        self._gzip = gzip.GzipFile(fileobj=cast(BinaryIO, file), mode="wb", compresslevel=_LEVEL, mtime=0)
        self.rows = 0
        self.raw_bytes = 0

    def line(self, data: bytes) -> None:
        self._gzip.write(data)
        self.rows += 1
        self.raw_bytes += len(data)

    def lines(self, data: bytes | bytearray | memoryview) -> None:
        """A block of any number of lines."""
        block = bytes(data)
        self._gzip.write(block)
        self.rows += block.count(b"\n")

    def close(self) -> None:
        self._gzip.close()


@contextmanager
def part_writer(
    folder: BackupFolder, backup_id: str, name: str, parts: list[Part], **more: object
) -> Iterator[PartWriter]:
    """Write the part `name`; it joins `parts` when it is whole. `more` are fields of `Part`."""
    path = part_path(backup_id, name)
    with folder.write(path) as file:
        writer = PartWriter(file)
        yield writer
        writer.close()
    parts.append(
        Part.model_validate(
            {"path": path, "sha256": file.sha256, "size_bytes": file.size, "rows": writer.rows, **more}
        )
    )


def part_lines(folder: BackupFolder, part: Part) -> Iterator[bytes]:
    """The lines of a part, each with its end; nothing of it is given out before all of it is proven.

    Raises:
        BackupDamaged: when the file is not what the manifest says.
    """
    rows = 0
    with folder.read(part.path) as file:
        expect(part, *hash_of(file))
        file.seek(0)
        with gzip.GzipFile(fileobj=file, mode="rb") as plain:
            for rows, line in enumerate(plain, start=1):  # noqa: B007 - the last one is needed below
                yield line
    if rows != part.rows:
        raise BackupDamaged(f"{part.path} has {rows} rows instead of {part.rows}; use another backup")


def expect(part: Part, sha256: str, size: int) -> None:
    """Compare with the manifest.

    Raises:
        BackupDamaged: when it differs.
    """
    if size != part.size_bytes:
        raise BackupDamaged(f"{part.path} has {size} bytes instead of {part.size_bytes}; use another backup")
    if sha256 != part.sha256:
        raise BackupDamaged(f"{part.path} is damaged: its SHA-256 differs; use another backup")
