"""Events as lines of NDJSON: each line holds the stored bytes exactly, spliced in and not written anew.

So a part is readable by anything that reads NDJSON, and still proves what the log held byte for byte. The
columns beside `state` are not stored: they repeat it, and are made of it again.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from command_api.backup.errors import BackupDamaged
from schemas.ids import id_uuid

_LINE = re.compile(rb'\{"position":([1-9]\d*),"event":(\{.*\})\}\n')

COLUMNS = (
    "notification_id",
    "originator_id",
    "originator_version",
    "topic",
    "state",
    "event_id",
    "stream_id",
    "organization_id",
    "workspace_id",
    "actor",
    "correlation_id",
    "causation_id",
    "recorded_at",
)
TYPES = (
    "int8",
    "uuid",
    "int8",
    "text",
    "bytea",
    "text",
    "text",
    "text",
    "text",
    "text",
    "text",
    "text",
    "timestamptz",
)


@dataclass(frozen=True, slots=True)
class EventLine:
    """One event of a backup."""

    position: int
    state: bytes
    envelope: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.envelope["type"])

    @property
    def stream_id(self) -> str:
        return str(self.envelope["stream_id"])

    @property
    def version(self) -> int:
        return int(self.envelope["version"])

    def row(
        self,
    ) -> tuple[int, UUID, int, str, bytes, str, str, str | None, str | None, str, str, str, datetime]:
        """The row of `kinora_events`, in the order of `COLUMNS`."""
        metadata = self.envelope["metadata"]
        return (
            self.position,
            id_uuid(self.stream_id),
            self.version,
            self.type,
            self.state,
            metadata["event_id"],
            self.stream_id,
            metadata["organization_id"],
            metadata["workspace_id"],
            metadata["actor"],
            metadata["correlation_id"],
            metadata["causation_id"],
            datetime.fromisoformat(metadata["recorded_at"]),
        )


def encode(position: int, state: bytes) -> bytes:
    """The line of one event. RFC 8785 text holds no raw line break."""
    return b'{"position":%d,"event":%b}\n' % (position, state)


def decode(line: bytes) -> EventLine:
    """One event of a line.

    Raises:
        BackupDamaged: when the line is not one of `encode`.
    """
    found = _LINE.fullmatch(line)
    if found is None:
        raise BackupDamaged(f"a line of the log is not an event: {line[:80]!r}; use another backup")
    position = int(found[1])
    try:
        event = EventLine(position, found[2], json.loads(found[2]))
        id_uuid(event.stream_id)
        event.envelope["metadata"], event.envelope["payload"], event.version, event.type
    except (KeyError, TypeError, ValueError) as error:
        raise BackupDamaged(f"event {position} is not an envelope: {error!r}; use another backup") from None
    return event
