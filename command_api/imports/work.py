"""One import at work: what it may take, how far it is, and whether it shall go on."""

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from command_api.imports.errors import SourceFailed
from command_api.settings import ImportSettings
from schemas.imports import ImportStage

BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file of the source, kept under a name of ours."""

    path: str
    """As the source names it, relative."""
    file: Path


@dataclass
class Work:
    """A folder of its own, limits, and a count that others read. Threads may use it."""

    settings: ImportSettings
    folder: Path
    stage: ImportStage = "fetching"
    bytes_done: int = 0
    bytes_total: int | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    changed: Callable[[], None] = lambda: None
    _files: int = 0

    def begin(self, stage: ImportStage, total: int | None = None) -> None:
        self.stage, self.bytes_done, self.bytes_total = stage, 0, total
        self.changed()

    def new_file(self) -> Path:
        """A place for the next file; its name says nothing, so no name from outside reaches this disk.

        Raises:
            SourceFailed: code ``too_many_files``.
        """
        self._files += 1
        if self._files > self.settings.max_files:
            raise SourceFailed(
                f"the source has more than {self.settings.max_files} files, the most that an import takes",
                code="too_many_files",
            )
        return self.folder / f"{self._files}"

    def took(self, count: int) -> None:
        """Count bytes that arrived.

        Raises:
            SourceFailed: ``import_too_large``, ``import_disk_full``, or ``import_cancelled``.
        """
        if self.ended.is_set():
            raise SourceFailed("the import was ended", code="import_cancelled", retryable=True)
        before = self.bytes_done
        self.bytes_done += count
        if self.bytes_done > self.settings.max_bytes:
            raise too_large(self.settings)
        # Looking at the disk for every block would cost more than writing it.
        if before // _LOOK_BYTES != self.bytes_done // _LOOK_BYTES:
            self.look_at_disk()

    def look_at_disk(self, wanted: int = 0) -> None:
        """Leave room for everybody else on this disk.

        Raises:
            SourceFailed: code ``import_disk_full``.
        """
        free = shutil.disk_usage(self.folder).free
        if free - wanted < self.settings.reserve_bytes:
            raise SourceFailed(
                f"the disk of imports has {free} bytes left, too few for this one; free some, or have the"
                " operator move the orchestrator's work_folder to a larger disk",
                code="import_disk_full",
                retryable=True,
            )

    def expect(self, size: int) -> None:
        """Refuse at once what would be refused later; what a source says is only a hint.

        Raises:
            SourceFailed: ``import_too_large`` or ``import_disk_full``.
        """
        if size > self.settings.max_bytes:
            raise too_large(self.settings)
        self.look_at_disk(size)


_LOOK_BYTES = 64 * 2**20


def too_large(settings: ImportSettings) -> SourceFailed:
    return SourceFailed(
        f"the source has more than {settings.max_bytes} bytes, the most that an import takes"
        " (imports.max_bytes)",
        code="import_too_large",
    )
