"""Inputs by content, bounded in bytes, kept so that the next job on the same model starts at once.

A file enters by a rename after verification and is verified again at each use, because attempts link to
it and an engine that decodes hostile files runs under the same user.
"""

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from uuid import uuid4

from trainer_agent.hashing import matches


class ContentCache:
    """Files named by their sha256, the least recently used first to leave; synchronous."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self._limit_bytes = limit_bytes

    def prepare(self) -> None:
        """Make the folders and remove what an earlier run had not finished downloading."""
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(parents=True)

    def incoming(self, sha256: str) -> Path:
        """Where to write content before `admit`; a different place each time."""
        return self._incoming / f"{sha256}.{uuid4().hex}"

    def admit(self, arrived: Path, sha256: str) -> None:
        """Take in verified content."""
        arrived.chmod(0o444)
        place = self._place(sha256)
        place.parent.mkdir(exist_ok=True)
        arrived.replace(place)

    def holds(self, sha256: str, size_bytes: int) -> bool:
        """Whether the content is here and whole; a damaged file is removed. Counts as use."""
        place = self._place(sha256)
        if matches(place, size_bytes=size_bytes, sha256=sha256):
            os.utime(place)
            return True
        place.unlink(missing_ok=True)
        return False

    def lay_out(self, sha256: str, target: Path) -> None:
        """Put the content at `target`: a hard link where the file system allows, else a copy."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(self._place(sha256))
        except FileExistsError:
            raise
        except OSError:
            shutil.copyfile(self._place(sha256), target)

    def trim(self, keep: Collection[str] = ()) -> None:
        """Make the cache fit its limit; what is in `keep` stays, even when that is too much."""
        files = sorted(
            ((status.st_mtime_ns, status.st_size, path) for path in self._files() if (status := path.stat())),
        )
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._limit_bytes:
                return
            if path.name not in keep:
                path.unlink(missing_ok=True)
                total -= size

    def _place(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def _files(self) -> list[Path]:
        return [path for path in self._folder.glob("??/*") if path.is_file()]
