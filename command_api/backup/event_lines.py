"""Events as lines of NDJSON: each line is the CloudEvent as every client gets it.

The stored bytes are in it unchanged, so a part is readable by whatever reads CloudEvents, and still proves
what the log held byte for byte. The columns beside `state` are not stored: they repeat it, and are made of it
again.
"""

import json
from dataclasses import dataclass
from typing import Any

from command_api.backup.errors import BackupDamaged
from command_api.eventlog.bulk import EventRow
from schemas.envelope import public_bytes, split_type, stored_bytes


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

    def row(self) -> EventRow:
        return EventRow.of(self.position, self.state, self.envelope)


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
