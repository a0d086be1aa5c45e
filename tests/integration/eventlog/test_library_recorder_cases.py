"""The eventsourcing library's own recorder tests, run against our recorder."""

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresDatastore
from eventsourcing.tests.persistence import (
    ApplicationRecorderTestCase,
    NonInterleavingNotificationIDsBaseCase,
)

from command_api.eventlog.mapper import StoredLoggedEvent
from command_api.eventlog.recorder import LogRecorder
from schemas.envelope import Metadata
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings


class PlainEventsRecorder(LogRecorder):
    """Ours, told what to put into the extra columns of the library's plain test events."""

    def with_columns(self, stored_event: StoredEvent) -> StoredLoggedEvent:
        metadata = Metadata(
            event_id=new_id(Prefix.EVENT),
            recorded_at=datetime.now(UTC),
            actor="system:test",
            correlation_id="req_1",
            causation_id="req_1",
        )
        return StoredLoggedEvent(
            originator_id=stored_event.originator_id,
            originator_version=stored_event.originator_version,
            topic=stored_event.topic,
            state=stored_event.state,
            stream_id=str(stored_event.originator_id),
            metadata=metadata,
        )


class OnPostgres:
    INITIAL_VERSION = 0
    recorder: PlainEventsRecorder

    @pytest.fixture(autouse=True)
    def _recorder(self, database: PostgresSettings) -> Iterator[None]:
        with PostgresDatastore(
            dbname=database.dbname,
            host=database.host,
            port=database.port,
            user=database.user,
            password=database.password.get_secret_value(),
            pool_size=2,
            max_overflow=12,
        ) as datastore:
            self.recorder = PlainEventsRecorder(datastore)
            self.recorder.create_table()
            yield

    def new_originator_id(self) -> UUID:
        return uuid4()

    def create_recorder(self) -> PlainEventsRecorder:
        return self.recorder


class TestApplicationRecorder(OnPostgres, ApplicationRecorderTestCase[PlainEventsRecorder]):
    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestNonInterleaving(OnPostgres, NonInterleavingNotificationIDsBaseCase):
    pass


# pytest would collect the abstract cases under their imported names too.
del ApplicationRecorderTestCase, NonInterleavingNotificationIDsBaseCase
