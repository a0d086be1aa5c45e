"""Events as lines of NDJSON: each line is the CloudEvent as every client gets it.

The stored bytes are in it unchanged, so a part is readable by whatever reads CloudEvents, and still proves
what the log held byte for byte. The columns beside `state` are not stored: they repeat it, and are made of it
again.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from command_api.backup.errors import BackupDamaged
from schemas.envelope import public_bytes, split_type, stored_bytes
from schemas.ids import id_uuid

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
        return split_type(str(self.envelope["type"]))[0]

    @property
    def stream_id(self) -> str:
        return str(self.envelope["subject"])

    @property
    def version(self) -> int:
        return int(self.envelope["streamversion"])

    def row(
        self,
    ) -> tuple[int, UUID, int, str, bytes, str, str, str | None, str | None, str, str, str, datetime]:
        """The row of `kinora_events`, in the order of `COLUMNS`."""
        envelope = self.envelope
        return (
            self.position,
            id_uuid(self.stream_id),
            self.version,
            self.type,
            self.state,
            envelope["id"],
            self.stream_id,
            envelope.get("organization"),
            envelope.get("workspace"),
            envelope["actor"],
            envelope["correlationid"],
            envelope["causationid"],
            datetime.fromisoformat(envelope["time"]),
        )


def encode(position: int, log_id: str, state: bytes) -> bytes:
    """The line of one event. RFC 8785 text holds no raw line break."""
    return public_bytes(position, log_id, state) + b"\n"


def decode(line: bytes) -> EventLine:
    """One event of a line.

    Raises:
        BackupDamaged: when the line is not one of `encode`.
    """
    try:
        position, _, state = stored_bytes(line.removesuffix(b"\n"))
        if not line.endswith(b"\n"):
            raise ValueError("its end is missing")  # noqa: TRY301 - said in one place, with every other fault
    except ValueError as error:
        raise BackupDamaged(
            f"a line of the log is not an event: {line[:80]!r} ({error}); use another backup"
        ) from None
    try:
        event = EventLine(position, state, json.loads(state))
        event.row(), event.envelope["data"], event.type
    except (KeyError, TypeError, ValueError) as error:
        raise BackupDamaged(f"event {position} is not an envelope: {error!r}; use another backup") from None
    return event
