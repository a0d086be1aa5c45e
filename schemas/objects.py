"""Objects in the store, always named together with what proves their content."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from schemas.base import Message
from schemas.ids import Sha256

_MOST_BYTES = 768
"""With the longest prefix in front of it, a path still fits the 1024 bytes of an object key."""
_MOST_NAME_BYTES = 255
"""What file systems take as one name."""
_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
_INVISIBLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


_PLAIN = re.compile(r"(?:(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.\- ]{1,200}(?:/(?!\Z)|\Z)){1,3}")
"""Most paths: nothing below could object to them, and there is one in every third event."""


def _inside(path: str) -> str:
    if _PLAIN.fullmatch(path):
        return path
    if any(unicodedata.category(sign) in _INVISIBLE or sign in _BIDIRECTIONAL for sign in path):
        raise ValueError(f"path {path!r} holds a control character; rename the file")
    if unicodedata.normalize("NFC", path) != path:
        raise ValueError(f"path {path!r} is not in Unicode's composed form; normalize it to NFC")
    # Look-alikes of dots and slashes count as what a later normalisation would make of them.
    plain = unicodedata.normalize("NFKC", path)
    if plain.startswith("/") or "\\" in plain or plain.count("/") != path.count("/"):
        raise _climbing(path)
    if any(part in ("", ".", "..") for part in plain.split("/")):
        raise _climbing(path)
    names = path.encode().split(b"/")
    if len(path.encode()) > _MOST_BYTES or max(map(len, names)) > _MOST_NAME_BYTES:
        raise ValueError(
            f"path {path!r} is too long; a name may have {_MOST_NAME_BYTES} bytes, a path {_MOST_BYTES}"
        )
    return path


def _climbing(path: str) -> ValueError:
    return ValueError(f"path {path!r} must be relative, with forward slashes, and stay inside its folder")


RelativePath = Annotated[str, StringConstraints(min_length=1, max_length=512), AfterValidator(_inside)]
"""A path inside a dataset, model or artifact folder: never absolute, never climbing out."""


class FileEntry(Message):
    """A file as its owner declares it, before it is in the store."""

    path: RelativePath
    size_bytes: int = Field(ge=0)
    sha256: Sha256


class StoredObject(Message):
    """A file that is in the store under `key`, with its verified hash."""

    path: RelativePath
    key: str
    """Full object key, starting with the organization's id."""
    size_bytes: int = Field(ge=0)
    sha256: Sha256


class Listing(Message):
    """All files of a dataset or model, sorted by path. Kept as an object, because an event is small."""

    files: tuple[FileEntry, ...]


def content_key(organization_id: str, sha256: str) -> str:
    """The key of an input: its content's address inside its organization, never across organizations."""
    return f"{organization_id}/objects/sha256/{sha256}"


def content_sha256(files: Iterable[FileEntry | StoredObject]) -> str:
    """The hash of a whole folder: SHA-256 over its sorted ``path:sha256`` lines, each ended by a newline."""
    lines = sorted(f"{file.path}:{file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def checkpoint_prefix(organization_id: str, job_id: str, attempt: int, step: int) -> str:
    """Folder of one attempt's checkpoint (M-155)."""
    return f"{organization_id}/checkpoints/job-{job_id}/attempt-{attempt}/checkpoint-{step}"


def adapter_prefix(organization_id: str, job_id: str, attempt: int) -> str:
    """Folder of the adapter that one attempt produced (M-155)."""
    return f"{organization_id}/models/finetuned/job-{job_id}/attempt-{attempt}"


def log_prefix(organization_id: str, job_id: str, attempt: int) -> str:
    """Folder of one attempt's log segments (M-155)."""
    return f"{organization_id}/logs/job-{job_id}/attempt-{attempt}"


def validation_prefix(organization_id: str, item_id: str, attempt: int) -> str:
    """Folder of what one validation attempt wrote, such as the dataset's manifest."""
    return f"{organization_id}/datasets/processed/{item_id}/attempt-{attempt}"
