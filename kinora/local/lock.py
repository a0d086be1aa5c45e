"""One running installation per data folder: two would corrupt each other's servers."""

import fcntl
import os
from types import TracebackType
from typing import Self

from kinora.local.errors import DataFolderRefused
from kinora.local.folder import DataFolder


class FolderLock:
    """Holds the data folder. The kernel lets go of it when the process ends, however it ends."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._descriptor = -1

    def __enter__(self) -> Self:
        descriptor = os.open(self._folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            os.close(descriptor)
            raise DataFolderRefused(
                f"the data folder {self._folder.root} is in use by process {holder};"
                " stop that one, or set KINORA_HOME to another folder",
                code="data_folder_in_use",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: removing it would let a second process lock a new file of the same name.
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = -1
