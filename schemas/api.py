"""Bodies of the REST API that more than one side spells: the CLI sends what the routes read."""

from typing import Literal

from pydantic import Field

from schemas.base import Message
from schemas.events.job import Priority, StopMode
from schemas.ids import DatasetId, ModelId
from schemas.objects import FileEntry
from schemas.subjects import DEFAULT_POOL
from schemas.training import Hyperparameters


class SignupBody(Message):
    """POST /auth/signup"""

    username: str = Field(min_length=3, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    email: str = Field(min_length=3, max_length=254, pattern=r"^[^@\s]+@[^@\s]+$")
    password: str = Field(min_length=10, max_length=1024)


class LoginBody(Message):
    """POST /auth/login; `username` may be an e-mail address."""

    username: str = Field(min_length=1, max_length=254)
    password: str = Field(min_length=1, max_length=1024)


class RefreshBody(Message):
    """POST /auth/refresh"""

    refresh_token: str = Field(min_length=1, max_length=512)


class RegisterBody(Message):
    """POST /datasets and POST /models"""

    name: str = Field(min_length=1, max_length=200)
    description: str = Field("", max_length=4000)
    files: tuple[FileEntry, ...] = Field(min_length=1, max_length=100_000)


class UploadPart(Message):
    """One part that the client has put."""

    number: int = Field(ge=1, le=10_000)
    etag: str = Field(min_length=1, max_length=128)


class UploadedFile(Message):
    """One file whose parts are all put, in ascending order."""

    sha256: str
    parts: tuple[UploadPart, ...] = Field(min_length=1)


class CompleteUploadBody(Message):
    """POST /datasets/{id}/upload/complete and POST /models/{id}/upload/complete"""

    upload_id: str
    files: tuple[UploadedFile, ...] = ()
    """Only the files that the session asked for; others are in the store already."""


class CreateJobBody(Message):
    """POST /jobs"""

    name: str = Field("", max_length=200)
    dataset_id: DatasetId
    model_id: ModelId
    hyperparameters: Hyperparameters = Hyperparameters()
    pool: str = Field(DEFAULT_POOL, pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    priority: Priority = "normal"
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)


class StopJobBody(Message):
    """POST /jobs/{id}/stop"""

    mode: StopMode = "graceful"
    reason: str = Field("", max_length=1000)


class EnrollAgentBody(Message):
    """POST /agents/enroll"""

    name: str = Field(min_length=1, max_length=100)
    pool: str = Field(DEFAULT_POOL, pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")


class UploadTargetPart(Message):
    """Where one part goes; PUT exactly its bytes."""

    number: int
    url: str
    size_bytes: int


class UploadTargetFile(Message):
    """One file that the store still needs."""

    path: str
    sha256: str
    parts: tuple[UploadTargetPart, ...]


class UploadSession(Message):
    """What POST …/upload answers: everything else of the declared files is already stored."""

    upload_id: str
    part_size_bytes: int
    files: tuple[UploadTargetFile, ...]
    expires_in_seconds: int


Status = Literal["uploading", "uploaded", "validating", "ready", "rejected", "deleted"]
"""Of a dataset or model."""
