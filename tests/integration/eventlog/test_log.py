"""Appending and reading: order, conflicts, repeats and the rows that go with events."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import Cursor
from psycopg.rows import DictRow

from command_api.domain.errors import Conflict
from command_api.eventlog import reader
from command_api.eventlog.errors import (
    CommandRepeated,
    EventNotCanonical,
    EventTooLarge,
    LogMismatch,
    LogUnavailable,
    VersionConflict,
)
from command_api.eventlog.log import Append, EventLog
from command_api.eventlog.recorder import CommandRow
from schemas.events.identity import UserLoggedIn, UserRegistered
from schemas.events.job import JobProgressed, ProgressPoint, WarningRaised
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings
from tests.integration.eventlog.log_samples import logged, one


@pytest.fixture
def log(database: PostgresSettings) -> Iterator[EventLog]:
    with EventLog.open(database) as log:
        with psycopg.connect(database.conninfo()) as connection:
            connection.execute("CREATE TABLE side (value text PRIMARY KEY)")
        yield log


@dataclass
class Side:
    """Writes a row, then refuses if told to."""

    value: str
    refuse: bool = False

    def write(self, cursor: Cursor[DictRow]) -> None:
        cursor.execute("INSERT INTO side (value) VALUES (%s)", (self.value,))
        if self.refuse:
            raise Conflict(f"{self.value} is taken", code="taken")


def side_values(database: PostgresSettings) -> list[str]:
    with psycopg.connect(database.conninfo()) as connection:
        return [row[0] for row in connection.execute("SELECT value FROM side ORDER BY value")]


def test_positions_follow_the_order_of_an_append(log: EventLog) -> None:
    stream, other = new_id(Prefix.USER), new_id(Prefix.USER)
    shares = log.append([Append((logged(stream, 1), logged(other, 1))), Append((logged(stream, 2),))])
    assert shares == [(1, 2), (3,)]
    assert log.head() == 3
    assert [(raw.stream_id, raw.version) for raw in log.read_all(0, 10)] == [
        (stream, 1),
        (other, 1),
        (stream, 2),
    ]


def test_an_event_comes_back_as_it_went_in(log: EventLog) -> None:
    event = UserRegistered(username_ciphertext="é\u2028🎬", email_ciphertext='"\\')
    sent = logged(event=event)
    log.append([one(sent)])
    (recorded,) = log.read_stream(sent.stream_id)
    assert (recorded.event, recorded.metadata, recorded.version) == (event, sent.metadata, 1)
    (raw,) = log.read_all(0, 1)
    assert raw.type == "kinora.user.registered"
    assert raw.recorded() == recorded


def test_columns_repeat_the_metadata(log: EventLog, database: PostgresSettings) -> None:
    sent = logged(organization_id="org_1")
    log.append([one(sent)])
    with psycopg.connect(database.conninfo()) as connection:
        row = connection.execute(
            "SELECT topic, event_id, stream_id, organization_id, workspace_id, actor, correlation_id,"
            " causation_id, recorded_at FROM kinora_events"
        ).fetchone()
    m = sent.metadata
    assert row == (
        "kinora.user.logged_in", m.event_id, sent.stream_id, "org_1", None, m.actor, m.correlation_id,
        m.causation_id, m.recorded_at,
    )  # fmt: skip


def test_reading_filters_and_pages(log: EventLog) -> None:
    job, organization = new_id(Prefix.JOB), "org_a"
    warning = WarningRaised(attempt=1, code="c", message="m")
    log.append([Append(tuple(logged(job, v, warning, organization) for v in (1, 2, 3)))])
    log.append([one(logged(organization_id="org_b")), one(logged())])
    assert [raw.position for raw in log.read_all(0, 2)] == [1, 2]
    assert [raw.position for raw in log.read_all(2, 10)] == [3, 4, 5]
    assert [raw.position for raw in log.read_all(0, 10, types=[UserLoggedIn.TYPE])] == [4, 5]
    assert log.read_all(0, 10, types=[]) == []
    assert [raw.position for raw in log.read_all(0, 10, organization_id="org_b")] == [4]
    assert [raw.position for raw in log.read_all(1, 10, stream_id=job)] == [2, 3]
    assert [recorded.version for recorded in log.read_stream(job, after_version=1)] == [2, 3]


def test_ids_that_share_their_digits_are_different_streams(log: EventLog) -> None:
    job = new_id(Prefix.JOB)
    log.append([one(logged(job))])
    dataset = job.replace("job_", "ds_")
    assert log.read_stream(dataset) == []
    assert log.read_all(0, 10, stream_id=dataset) == []


def test_a_version_is_taken_once(log: EventLog) -> None:
    stream = new_id(Prefix.USER)
    log.append([one(logged(stream))])
    with pytest.raises(VersionConflict):
        log.append([one(logged()), one(logged(stream))])
    assert log.head() == 1


def test_a_repeated_command_stores_nothing(log: EventLog) -> None:
    command = CommandRow("usr_1", "key", b"hmac", "usr_1")
    log.append([Append((logged(), logged()), command)])
    with pytest.raises(CommandRepeated):
        log.append([Append((logged(),), command)])
    assert log.head() == 2
    stored = log.find_command("usr_1", "key")
    assert stored is not None
    assert (stored.request_hmac, stored.first_position, stored.position, stored.event_count) == (
        b"hmac",
        1,
        2,
        2,
    )
    assert [recorded.position for recorded in log.events_of(stored)] == [1, 2]
    assert log.find_command("usr_2", "key") is None


def test_a_command_without_events_is_remembered_too(log: EventLog) -> None:
    log.append([one(logged())])
    assert log.append([Append((), CommandRow("usr_1", "key", b"", None))]) == [()]
    stored = log.find_command("usr_1", "key")
    assert stored is not None
    assert (stored.position, log.events_of(stored)) == (1, ())


def test_a_derived_event_id_cannot_be_stored_twice(log: EventLog) -> None:
    event_id = new_id(Prefix.EVENT)
    log.append([one(logged(event_id=event_id))])
    with pytest.raises(CommandRepeated):
        log.append([Append((logged(event_id=event_id), logged()))])
    assert log.head() == 1


def test_side_rows_are_committed_with_the_events(log: EventLog, database: PostgresSettings) -> None:
    log.append([Append((logged(),), rows=(Side("a"), Side("b")))])
    assert side_values(database) == ["a", "b"]


def test_a_refusing_side_row_takes_everything_with_it(log: EventLog, database: PostgresSettings) -> None:
    command = CommandRow("usr_1", "key", b"", None)
    with pytest.raises(Conflict, match="b is taken"):
        log.append([Append((logged(),), command, (Side("a"), Side("b", refuse=True)))])
    assert (log.head(), side_values(database), log.find_command("usr_1", "key")) == (0, [], None)


def test_a_refused_append_leaves_no_side_row(log: EventLog, database: PostgresSettings) -> None:
    stream = new_id(Prefix.USER)
    log.append([one(logged(stream))])
    with pytest.raises(VersionConflict):
        log.append([Append((logged(stream),), rows=(Side("a"),))])
    assert side_values(database) == []


def test_what_json_cannot_carry_is_refused(log: EventLog) -> None:
    lone_surrogate = WarningRaised.model_construct(attempt=1, code="c", message="\ud800")
    with pytest.raises(EventNotCanonical):
        log.append([one(logged(event=lone_surrogate))])
    large = WarningRaised(attempt=1, code="c", message="x" * 256 * 1024)
    with pytest.raises(EventTooLarge, match="store the bulk as an object"):
        log.append([one(logged(event=large))])
    assert log.head() == 0


def test_the_log_keeps_its_id(log: EventLog, database: PostgresSettings) -> None:
    assert log.log_id.startswith("log_")
    with EventLog.open(database) as again, EventLog.open(database, create_tables=False) as third:
        assert again.log_id == third.log_id == log.log_id


def test_several_processes_may_create_the_tables_at_once(database: PostgresSettings) -> None:
    ids: list[str] = []

    def open_it() -> None:
        with EventLog.open(database) as log:
            ids.append(log.log_id)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 6
    assert len(set(ids)) == 1


def test_a_database_without_a_log_is_named(database: PostgresSettings) -> None:
    with pytest.raises(LogMismatch, match="create_tables"):
        EventLog.open(database, create_tables=False)


def test_positions_that_are_drawn_ahead_are_refused(database: PostgresSettings) -> None:
    EventLog.open(database).close()
    with psycopg.connect(database.conninfo()) as connection:
        connection.execute("ALTER SEQUENCE kinora_events_notification_id_seq CACHE 10")
    with pytest.raises(LogMismatch, match="CACHE 1"):
        EventLog.open(database)


def test_a_database_that_is_not_there_is_named(database: PostgresSettings) -> None:
    with pytest.raises(LogUnavailable, match="does not answer"):
        EventLog.open(database.model_copy(update={"port": 1}))


def test_every_append_notifies_once(log: EventLog, database: PostgresSettings) -> None:
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        connection.execute("LISTEN kinora_events")
        log.append([Append((logged(), logged())), one(logged())])
        assert len(list(connection.notifies(timeout=5, stop_after=1))) == 1
        assert list(connection.notifies(timeout=0.1)) == []


def test_following_lifecycles_reads_no_measurements(log: EventLog, database: PostgresSettings) -> None:
    point = ProgressPoint(
        step=1, loss=1.0, learning_rate=1e-3, grad_norm=1.0, tokens=1, tokens_per_second=1.0, step_seconds=1.0
    )
    progress = JobProgressed(attempt=1, step=1, total_steps=9, epoch=0.1, points=(point,), eta_seconds=1)
    job, warning = new_id(Prefix.JOB), WarningRaised(attempt=1, code="c", message="m")
    events = [warning if version % 1000 == 0 else progress for version in range(1, 4001)]
    log.append([Append(tuple(logged(job, version, one) for version, one in enumerate(events, start=1)))])
    types = [WarningRaised.TYPE, UserLoggedIn.TYPE]
    assert [raw.position for raw in log.read_all(0, 10, types=types)] == [1000, 2000, 3000, 4000]
    assert [raw.position for raw in log.read_all(998, 2, types=[*types, JobProgressed.TYPE])] == [999, 1000]

    query = reader.page_query(types, ()).replace("%(after)s", "0").replace("%(limit)s", "1000")
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        connection.execute("ANALYZE kinora_events")
        plan = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", {"types": types}).fetchone()
    assert plan is not None
    scan = plan[0][0]["Plan"]["Plans"][0]
    assert (scan["Index Name"], scan.get("Rows Removed by Filter", 0)) == ("kinora_events_lifecycle_idx", 0)
