"""Unpacks archives that nobody vouches for: no name, link, device, claim or size of theirs is believed.

Files are written under names of ours, so that nothing in an archive decides where on this disk it goes.
"""

import bz2
import gzip
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import TypeAdapter, ValidationError

from command_api.imports.errors import DISK_FULL, SourceFailed
from command_api.imports.work import BLOCK_BYTES, Fetched, Work
from schemas.objects import RelativePath

Format = Literal["zip", "tar", "tar.gz", "tar.bz2"]

_PATH: TypeAdapter[str] = TypeAdapter(RelativePath)
_MOST_AT_ONCE = 16 * 2**20
"""What one read of tar's metadata may ask for: a header can claim to be gigabytes long."""
_ENCRYPTED = 0x1
_JUNK = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db"})


def sniffed(file: Path) -> Format | None:
    """What the first bytes say that it is; names and headers are not asked."""
    with file.open("rb") as stream:
        head = stream.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if head.startswith(b"BZh"):
        return "tar.bz2"
    if head[257:262] == b"ustar":
        return "tar"
    return None


def unpack(archive: Path, work: Work) -> list[Fetched]:
    """Every regular file of an archive. Blocks, for a process of its own: see `unpacker`.

    Raises:
        SourceFailed: ``archive_unknown``, ``archive_unsafe``, ``archive_damaged``, or a limit of `work`.
        OSError: when this disk is full.
    """
    kind = sniffed(archive)
    if kind is None:
        raise SourceFailed(
            "what arrived is no archive (zip, tar, tar.gz or tar.bz2, told by its first bytes);"
            " pack the folder into one",
            code="archive_unknown",
        )
    try:
        found = list(_zipped(archive, work) if kind == "zip" else _tarred(archive, kind, work))
    except SourceFailed:
        raise
    except MemoryError:
        raise _unsafe("its index", "is absurdly large") from None
    except Exception as error:  # a door: decoders of what strangers made fail in every way there is
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise SourceFailed(
            f"the {kind} archive is damaged ({type(error).__name__}); pack and upload it again",
            code="archive_damaged",
        ) from None
    _check_collisions([each.path for each in found])
    return found


def _zipped(archive: Path, work: Work) -> Iterator[Fetched]:
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(entry.filename, "is a link or a device")
            if entry.flag_bits & _ENCRYPTED:
                raise _unsafe(entry.filename, "is encrypted")
            path = _inside(entry.filename)
            if entry.is_dir() or path is None:
                continue
            with packed.open(entry) as content:
                yield Fetched(path, _copied(content.read, work))


def _tarred(archive: Path, kind: Format, work: Work) -> Iterator[Fetched]:
    with _decompressed(archive, kind) as stream:
        bounded: Any = _Bounded(stream, work)
        with tarfile.open(fileobj=bounded, mode="r:") as packed:
            for entry in packed:
                if not (entry.isreg() or entry.isdir()) or entry.issparse():
                    raise _unsafe(entry.name, "is a link, a device or sparse")
                path = _inside(entry.name)
                if entry.isdir() or path is None:
                    continue
                content = packed.extractfile(entry)
                if content is not None:
                    yield Fetched(path, _copied(content.read, work))


def _decompressed(archive: Path, kind: Format) -> IO[bytes] | gzip.GzipFile:
    if kind == "tar.gz":
        return gzip.open(archive)
    if kind == "tar.bz2":
        return bz2.open(archive)
    return archive.open("rb")


class _Bounded:
    """A stream for tarfile that refuses absurd reads and notices when the import is ended."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, work: Work) -> None:
        self._stream = stream
        self._work = work

    def read(self, size: int) -> bytes:
        if size > _MOST_AT_ONCE:
            raise _unsafe("its index", "is absurdly large")
        self._work.took(0)
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        # A compressed stream seeks by reading: never in one step past what may be unpacked at all.
        if offset > 2 * self._work.settings.max_bytes:
            raise _unsafe("its index", "points far beyond its end")
        while whence == 0 and offset - self._stream.tell() > _MOST_AT_ONCE:
            self._work.took(0)
            before = self._stream.tell()
            if self._stream.seek(before + _MOST_AT_ONCE) <= before:
                break
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _copied(read: Callable[[int], bytes], work: Work) -> Path:
    target = work.new_file()
    with target.open("xb") as file:
        while block := read(BLOCK_BYTES):
            work.took(len(block))
            file.write(block)
    return target


def _inside(name: str) -> str | None:
    """The entry's path, or None for the folder itself and for what desktops add.

    Raises:
        SourceFailed: code ``archive_unsafe``.
    """
    path = name.removeprefix("./").removesuffix("/")
    if path in ("", "."):
        return None
    try:
        path = _PATH.validate_python(path)
    except ValidationError:
        raise _unsafe(name, "does not stay inside the archive's folder, or is no usable name") from None
    return None if _JUNK.intersection(path.split("/")) else path


def _check_collisions(paths: list[str]) -> None:
    """Names that some file system takes for the same."""
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(path.casefold(), path)
        if other is not path:
            raise _unsafe(path, f"differs from {other[:100]!r} only by case, or is there twice")


def _unsafe(name: str, why: str) -> SourceFailed:
    return SourceFailed(
        f"the archive cannot be unpacked safely: {name[:200]!r} {why}; leave it out and pack it again",
        code="archive_unsafe",
    )
