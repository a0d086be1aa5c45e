"""What every connection of the feed shares, and how patient the feed is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from command_api.auth.erased import ErasedUsers
from command_api.auth.tokens import Principal
from command_api.feed.encoding import EventTexts
from command_api.feed.rights import Rights
from command_api.feed.telemetry import TelemetryHub
from projections.reader import LogReader
from projections.tail import LogTail


class Closing(Exception):
    """The connection ends with this WebSocket close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Served(Protocol):
    """Somebody who follows."""

    def positions(self) -> list[int]:
        """How far each subscription is."""


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """How patient the feed is."""

    heartbeat_seconds: float = 10.0
    stall_seconds: float = 30.0
    """A client that takes no frame for so long is cut off; it resumes by position."""
    subscriptions: int = 16
    frames: int = 100
    """Client frames within `frames_seconds`."""
    frames_seconds: float = 10.0
    frame_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class FeedParts:
    """One of each per process."""

    log_id: str
    reader: LogReader
    tail: LogTail
    telemetry: TelemetryHub
    rights: Rights
    erased: ErasedUsers
    authenticate: Callable[[str], Principal]
    foreign: Callable[[str | None], str | None]
    """Why positions of a log mean nothing here; None when they do."""
    texts: EventTexts
    limits: FeedLimits = FeedLimits()
    connections: set[Served] = field(default_factory=set)
    """Those that are being served."""

    def lag(self) -> int:
        """How many positions the slowest subscription is behind what the log is known to hold."""
        positions = (position for connection in self.connections for position in connection.positions())
        return max(0, self.tail.head - min(positions, default=self.tail.head))
