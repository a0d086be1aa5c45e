"""The hashes that prove a file's content, read once for both."""

import hashlib
from base64 import b64encode
from pathlib import Path

from schemas.base import Message

_CHUNK = 1 << 20


class Digest(Message):
    """What a file's bytes amount to."""

    size_bytes: int
    sha256: str
    md5_base64: str
    """For the Content-MD5 header: the store itself refuses what a wire garbled. Never trusted alone."""


def digest(path: Path) -> Digest:
    """Read all of `path`; blocks."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
            size += len(chunk)
    return Digest(
        size_bytes=size, sha256=sha256.hexdigest(), md5_base64=b64encode(md5.digest()).decode("ascii")
    )


def matches(path: Path, *, size_bytes: int, sha256: str) -> bool:
    """Whether `path` is a file with this content; blocks."""
    try:
        if path.stat().st_size != size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False
