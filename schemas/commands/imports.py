"""What the import commands of datasets and models have in common."""

from pydantic import Field

from schemas.commands.base import Command
from schemas.ids import UserId
from schemas.imports import ImportSource
from schemas.objects import StoredObject


class RequestImport(Command):
    """Have the files fetched by the control plane."""

    name: str
    description: str
    owner_id: UserId
    source: ImportSource


class CompleteImport(Command):
    """Every file is in the store under its hash, and `listing` names them."""

    attempt: int = Field(ge=1)
    listing: StoredObject
    file_count: int
    size_bytes: int
    upload_id: str
    """Names the import where an upload's session would stand."""


class FailImport(Command):
    attempt: int = Field(ge=1)
    code: str
    message: str
    retryable: bool


class RetryImport(Command):
    """Once more, from the same source."""
