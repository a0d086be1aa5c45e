"""`manifest.json`: what a backup holds. It is written last, so where it stands the backup is whole."""

import hashlib
import json
from datetime import datetime
from typing import Any, Literal, Self

import rfc8785
from pydantic import Field, ValidationError

from command_api.backup.errors import BackupDamaged, BackupTooNew
from schemas.base import Message
from schemas.ids import Sha256
from schemas.objects import RelativePath

NAME = "manifest.json"
FORMAT = 1
"""Grows when an older Kinora could not read what is written."""


class Part(Message):
    """One file of a backup that is not an object."""

    path: RelativePath
    kind: Literal["events", "table", "objects", "keys"]
    sha256: Sha256
    """Of the file as it is stored, that is compressed or sealed."""
    size_bytes: int = Field(ge=0)
    rows: int = Field(0, ge=0)
    table: str | None = None
    columns: tuple[str, ...] = ()


class ObjectTotals(Message):
    """The objects of a backup, counted."""

    names: int = Field(ge=0)
    contents: int = Field(ge=0)
    """Distinct ones: the same bytes under two keys are kept once."""
    size_bytes: int = Field(ge=0)
    absent: int = Field(0, ge=0)
    """Named by the log and rightly not in the store: of deleted or never uploaded things."""
    lost: int = Field(0, ge=0)
    """Named by the log, needed, and missing or damaged in the store when the backup was made."""


class Manifest(Message):
    """What a backup holds and what proves it."""

    format: int = FORMAT
    kinora_version: str
    backup_id: str
    created_at: datetime
    log_id: str
    head: int = Field(ge=0)
    """Position of the last event."""
    events: int = Field(ge=0)
    parts: tuple[Part, ...]
    objects: ObjectTotals
    left_out_tables: tuple[str, ...] = ()
    """Tables of the database that are not Kinora's."""

    def of_kind(self, kind: str) -> list[Part]:
        """The parts of one kind, in order."""
        return [part for part in self.parts if part.kind == kind]

    def to_bytes(self) -> bytes:
        """The file, with a checksum of itself."""
        content = self.model_dump(mode="json")
        return json.dumps({**content, "checksum": _checksum(content)}, indent=2).encode() + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read the file.

        Raises:
            BackupTooNew: when another format is written there than this code knows.
            BackupDamaged: when it is not a manifest, or its checksum is wrong.
        """
        try:
            content = json.loads(raw)
            number = content["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise BackupDamaged(f"{NAME} is not a manifest ({error}); use another backup") from None
        if isinstance(number, int) and number > FORMAT:
            raise BackupTooNew(
                f"the backup has format {number}, written by Kinora {content.get('kinora_version')};"
                f" this Kinora reads formats up to {FORMAT}: upgrade it first"
            )
        checksum = content.pop("checksum", None)
        try:
            if checksum != _checksum(content):
                raise BackupDamaged(f"{NAME} is damaged: its checksum is wrong; use another backup")
            return cls.model_validate(content)
        except (ValidationError, rfc8785.CanonicalizationError) as error:
            raise BackupDamaged(f"{NAME} is damaged: {error}; use another backup") from error


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(rfc8785.dumps(content)).hexdigest()
