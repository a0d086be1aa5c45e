"""Reads folders of the server, only below the roots that the operator named, whatever links lead elsewhere.

A path is resolved once, must then lie below a root, and is opened component by component without following
links: whoever swaps a folder for a link in between gets an error, not a file.
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from command_api.imports.errors import DISK_FULL, SourceFailed
from command_api.imports.work import BLOCK_BYTES, Fetched, Work

_MOST_DEPTH = 64


def is_below(path: str, roots: Sequence[str]) -> bool:
    """Whether a path, as it is written, lies in one of the roots."""
    plain = os.path.normpath(path)
    return any(_within(plain, os.path.normpath(root)) for root in roots)


def copied(path: str, roots: Sequence[str], work: Work) -> list[Fetched]:
    """Copies of a folder's regular files, or of the one file that `path` names. Blocks; run it in a thread.

    Raises:
        SourceFailed: ``folder_outside_roots``, ``folder_unsafe``, ``source_missing``, or a limit of `work`.
    """
    root, real = _resolved(path, roots)
    with _opened(root, real) as descriptor:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return [Fetched(Path(real).name, _copy(descriptor, real, work))]
        entries = list(_walked(root, real, descriptor, "", 0, work))
    work.begin("fetching", sum(size for _, _, size in entries))
    work.expect(work.bytes_total or 0)
    found = []
    for relative, target, _ in entries:
        with _opened(root, target) as descriptor:
            found.append(Fetched(relative, _copy(descriptor, relative, work)))
    return found


def _walked(
    root: str, folder: str, descriptor: int, inside: str, depth: int, work: Work
) -> Iterator[tuple[str, str, int]]:
    """Path inside the source, real path and size of every file. Links to files below the root count."""
    if depth > _MOST_DEPTH:
        raise _unsafe(inside, "is nested too deeply")
    for name in sorted(os.listdir(descriptor)):
        work.took(0)
        relative = f"{inside}{name}"
        target = f"{folder}/{name}"
        mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            target = os.path.realpath(target)
            if not _within(target, root):
                raise _unsafe(relative, "is a link that leads out of the import folder")
        with _opened(root, target) as opened:
            found = os.fstat(opened)
            if stat.S_ISDIR(found.st_mode) and not stat.S_ISLNK(mode):
                yield from _walked(root, target, opened, f"{relative}/", depth + 1, work)
            elif stat.S_ISREG(found.st_mode):
                yield relative, target, found.st_size
            else:
                raise _unsafe(relative, "is neither a file nor a folder of its own")


def _resolved(path: str, roots: Sequence[str]) -> tuple[str, str]:
    real = os.path.realpath(path)
    for root in roots:
        real_root = os.path.realpath(root)
        if _within(real, real_root):
            return real_root, real
    raise SourceFailed(
        f"{path} is not below a folder that may be imported; the operator names those in KINORA_IMPORT_ROOTS",
        code="folder_outside_roots",
    )


@contextmanager
def _opened(root: str, path: str) -> Iterator[int]:
    """A descriptor of `path`, reached from the root without following any link."""
    held = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        parts = Path(path).relative_to(root).parts
        for index, part in enumerate(parts):
            folder = os.O_DIRECTORY if index < len(parts) - 1 else 0
            # Without O_NONBLOCK, opening a pipe would wait for its other end.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | folder
            following = os.open(part, flags, dir_fd=held)
            os.close(held)
            held = following
        yield held
    except OSError as error:
        if error.errno in DISK_FULL:
            raise  # of the copy's disk, not of the folder
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise _unsafe(Path(path).name, "is no plain file or folder, or became another") from None
        code = "source_missing" if error.errno == errno.ENOENT else "folder_unsafe"
        reason = os.strerror(error.errno or 0)
        raise SourceFailed(
            f"{Path(path).name} cannot be read ({reason}); check that it is there and readable by"
            " the service",
            code=code,
        ) from None
    finally:
        os.close(held)


def _copy(descriptor: int, name: str, work: Work) -> Path:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise _unsafe(name, "is not a plain file")
    target = work.new_file()
    with target.open("xb") as file:
        while block := os.read(descriptor, BLOCK_BYTES):
            work.took(len(block))
            file.write(block)
    return target


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _unsafe(name: str, why: str) -> SourceFailed:
    return SourceFailed(
        f"the folder cannot be imported safely: {name[:200]!r} {why}; leave it out", code="folder_unsafe"
    )
