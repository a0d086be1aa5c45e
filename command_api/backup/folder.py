"""A backup as a folder: parts of their own for every backup, objects shared by their content.

Nothing that an earlier backup needs is touched until the new manifest has taken the old one's place; what
only the old one needed is removed afterwards. A folder without a manifest holds no backup yet.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from command_api.backup.errors import BackupDamaged, TargetRefused
from command_api.backup.manifest import NAME, Manifest

_LOCK = "lock"
_PARTS = "parts"
_OBJECTS = "objects"
_DRAFT = ".partial"
_CHUNK_BYTES = 2**20


def object_path(sha256: str) -> str:
    """Where a backup keeps the content with this hash."""
    return f"{_OBJECTS}/sha256/{sha256[:2]}/{sha256}"


def part_path(backup_id: str, name: str) -> str:
    """Where a backup keeps one of its parts."""
    return f"{_PARTS}/{backup_id}/{name}"


class BackupFolder:
    """Reads a backup; `writing` makes or replaces one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # ---- reading --------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        """What is backed up here.

        Raises:
            BackupDamaged: when there is no whole backup.
        """
        try:
            return Manifest.from_bytes((self.root / NAME).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            began = (self.root / _LOCK).exists()
            why = "the backup there was never finished; repeat it" if began else "there is no backup"
            raise BackupDamaged(f"{self.root} has no {NAME}: {why}") from None
        except OSError as error:
            raise BackupDamaged(f"{self.root / NAME} cannot be read: {error.strerror}") from error

    def earlier(self) -> Manifest | None:
        """The backup that a new one replaces, if there is one that can be read."""
        try:
            return self.manifest()
        except BackupDamaged:
            return None

    @contextmanager
    def read(self, path: str) -> Iterator[BinaryIO]:
        """A file of the backup.

        Raises:
            BackupDamaged: when it is missing or cannot be read.
        """
        try:
            with (self.root / path).open("rb") as file:
                yield file
        except FileNotFoundError:
            raise BackupDamaged(f"{path} is missing in {self.root}; use another backup") from None
        except OSError as error:
            raise BackupDamaged(f"{path} in {self.root} cannot be read: {error.strerror}") from error

    def size(self, path: str) -> int | None:
        """A file's size; None when it is not there."""
        try:
            return (self.root / path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    # ---- writing --------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder, making it when it is not there.

        Raises:
            TargetRefused: when it holds something else, is being written to, or cannot be.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = {entry.name for entry in self.root.iterdir()}
            if found and not found & {_LOCK, NAME}:
                raise TargetRefused(
                    f"{self.root} is not empty and not a backup (it holds {min(found)!r});"
                    " name a new or empty folder, or one that an earlier backup made"
                )
            self.root.chmod(0o700)
            descriptor = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise TargetRefused(f"another backup is being written to {self.root}; wait for its end") from None
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            os.close(descriptor)

    @contextmanager
    def parts_of(self, backup_id: str) -> Iterator[None]:
        """Remove the parts of a backup that was not finished, whatever ended it."""
        try:
            yield
        except BaseException:
            shutil.rmtree(self.root / _PARTS / backup_id, ignore_errors=True)
            raise

    @contextmanager
    def write(self, path: str) -> Iterator["Digesting"]:
        """A new file, that is whole or absent, readable by its owner only."""
        target = self.root / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = target.with_name(target.name + _DRAFT)
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield Digesting(file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def commit(self, manifest: Manifest, contents: set[str]) -> None:
        """Let `manifest` be what is backed up here, and remove what it does not need.

        `contents` are the hashes of its objects.
        """
        with self.write(NAME) as file:
            file.write(manifest.to_bytes())
        for folder in (self.root / _PARTS).iterdir():
            if folder.name != manifest.backup_id:
                shutil.rmtree(folder)
        for path in (self.root / _OBJECTS).rglob("*"):
            if path.is_file() and path.name not in contents:
                path.unlink()

    def _unwritable(self, error: OSError) -> TargetRefused:
        kept = " (the backup that was there is untouched)" if (self.root / NAME).exists() else ""
        return TargetRefused(
            f"{self.root} cannot be written: {error.strerror or error}{kept};"
            " free some space or name another place"
        )


class Digesting:
    """A file that knows the hash and the size of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def hash_of(file: BinaryIO) -> tuple[str, int]:
    """SHA-256 and size of what is left to read."""
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size
