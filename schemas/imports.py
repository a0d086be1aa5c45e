"""Where the files of an imported dataset or model come from, and how far an import is."""

from typing import Literal

from schemas.base import Message

SourceKind = Literal["url", "s3", "folder", "hub"]
Collection = Literal["datasets", "models"]


class ImportSource(Message):
    """A place with files. It never holds a credential, only the name of one in the secret store."""

    kind: SourceKind
    uri: str
    """``https://…``, ``s3://bucket/prefix``, ``file:///folder`` of the server, ``hf://owner/name@revision``."""
    secret: str | None = None
    """Name of the workspace's secret that opens it."""


class ImportProblem(Message):
    """Why an import failed."""

    code: str
    message: str
    retryable: bool
    """Whether the same import may succeed later."""


ImportStage = Literal["waiting", "fetching", "unpacking", "hashing", "storing"]


class ImportProgress(Message):
    """How far a running import is; measured, not recorded."""

    attempt: int
    stage: ImportStage
    bytes_done: int = 0
    bytes_total: int | None = None
    """None while the source has not said."""
