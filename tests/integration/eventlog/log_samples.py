"""Events and logs that the event log's tests share."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from command_api.eventlog.log import Append, EventLog
from command_api.eventlog.mapper import LoggedEvent
from schemas.envelope import Metadata
from schemas.events import Event
from schemas.events.identity import UserLoggedIn
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings


@contextmanager
def opened(database: PostgresSettings) -> Iterator[EventLog]:
    with EventLog.open(database) as log:
        yield log


def logged(
    stream_id: str | None = None,
    version: int = 1,
    event: Event | None = None,
    organization_id: str | None = None,
    event_id: str | None = None,
) -> LoggedEvent:
    """One event with metadata of its own."""
    metadata = Metadata(
        event_id=event_id or new_id(Prefix.EVENT),
        recorded_at=datetime.now(UTC),
        organization_id=organization_id,
        actor="system:test",
        correlation_id="req_1",
        causation_id="req_1",
    )
    return LoggedEvent(stream_id or new_id(Prefix.USER), version, metadata, event or UserLoggedIn())


def one(event: LoggedEvent) -> Append:
    return Append((event,))
