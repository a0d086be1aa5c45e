"""Objects in the store, always named together with what proves their content."""

import hashlib
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from schemas.base import Message
from schemas.ids import Sha256


def _inside(path: str) -> str:
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"path {path!r} must be relative, with forward slashes, and stay inside its folder")
    if any(ord(character) < 32 for character in path):
        raise ValueError(f"path {path!r} holds a control character; rename the file")
    return path


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
