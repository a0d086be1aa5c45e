"""Events brought in with their positions: kept exactly, or refused whole."""

import json
from collections.abc import Iterator, Sequence

import psycopg
import pytest
from psycopg.rows import dict_row

from benchmarks.seeding import Story
from command_api.eventlog.bulk import EventRow, Imported, import_rows
from command_api.eventlog.errors import ImportRefused
from command_api.eventlog.log import EventLog
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings
from tests.integration.eventlog.log_samples import logged, one

ROWS = tuple(Story(organizations=1, agents=2).rows(300))


@pytest.fixture
def log(database: PostgresSettings) -> Iterator[EventLog]:
    with EventLog.open(database) as log:
        yield log


def bring(database: PostgresSettings, rows: Sequence[EventRow]) -> Imported:
    with (
        psycopg.connect(database.conninfo(), row_factory=dict_row) as connection,
        connection.cursor() as cursor,
    ):
        return import_rows(cursor, rows)


def test_bytes_and_positions_are_kept_and_appends_go_on_behind_them(
    database: PostgresSettings, log: EventLog
) -> None:
    assert bring(database, ROWS).events == len(ROWS)
    assert [(raw.position, raw.state) for raw in log.read_all(0, 1000)] == [
        (row.notification_id, row.state) for row in ROWS
    ]
    head = ROWS[-1].notification_id
    assert log.append([one(logged())]) == [(head + 1,)]


def test_a_log_can_be_brought_in_by_parts(database: PostgresSettings, log: EventLog) -> None:
    for part in (ROWS[:100], ROWS[100:101], (), ROWS[101:]):
        bring(database, part)
    assert [raw.state for raw in log.read_all(0, 1000)] == [row.state for row in ROWS]


def test_an_import_leaves_indexes_and_constraints_as_they_were(
    database: PostgresSettings, log: EventLog
) -> None:
    def indexes() -> list[tuple[str, str, bool]]:
        with psycopg.connect(database.conninfo()) as connection:
            return connection.execute(
                "SELECT conname, pg_get_indexdef(indexrelid), indisprimary"
                " FROM pg_index LEFT JOIN pg_constraint ON conindid = indexrelid"
                " WHERE indrelid = 'kinora_events'::regclass ORDER BY 2"
            ).fetchall()

    before = indexes()
    bring(database, ROWS)
    assert indexes() == before
    assert ("kinora_events_pkey", True) in [(name, is_primary) for name, _, is_primary in before]


def test_a_row_is_made_of_the_stored_bytes() -> None:
    assert [EventRow.of(row.notification_id, row.state, json.loads(row.state)) for row in ROWS] == list(ROWS)


def test_listeners_are_woken_once(database: PostgresSettings, log: EventLog) -> None:
    with psycopg.connect(database.conninfo(), autocommit=True) as listener:
        listener.execute("LISTEN kinora_events")
        bring(database, ROWS)
        listener.execute("SELECT 1")
        assert len(list(listener.notifies(timeout=0.2, stop_after=2))) == 1


def later(row: EventRow, positions: int) -> EventRow:
    return row._replace(notification_id=row.notification_id + positions)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([*ROWS[:2], ROWS[1]], "position 2, but 2 is taken"),
        ([ROWS[1], ROWS[0]], "position 1, but 2 is taken"),
        ([row for row in ROWS if row.originator_version != 2], "would go on with version 3"),
        ([row for row in ROWS if row.originator_version != 1], "version 1 is not in the log"),
        ([*ROWS, later(ROWS[-1], 1)], "its last one before is"),
        (
            [*ROWS, later(ROWS[-1], 1)._replace(stream_id="other", originator_id=ROWS[0].originator_id)],
            "go on with",
        ),
        (
            [*ROWS, later(ROWS[-1], 1)._replace(originator_version=ROWS[-1].originator_version + 1)],
            "the log holds one of these events already",
        ),
    ],
    ids=["twice", "backwards", "hole", "no_beginning", "version_twice", "foreign_version", "event_twice"],
)
def test_what_is_no_log_is_refused_whole(
    database: PostgresSettings, log: EventLog, rows: Sequence[EventRow], says: str
) -> None:
    with pytest.raises(ImportRefused, match=says):
        bring(database, rows)
    assert log.head() == 0
    assert log.append([one(logged())])


def test_positions_that_are_taken_are_refused(database: PostgresSettings, log: EventLog) -> None:
    log.append([one(logged(new_id(Prefix.USER)))])
    with pytest.raises(ImportRefused, match="1 is taken already"):
        bring(database, ROWS)
    assert bring(database, [later(row, 1) for row in ROWS]).head == ROWS[-1].notification_id + 1


def test_a_stream_that_is_there_is_continued_but_never_repeated(
    database: PostgresSettings, log: EventLog
) -> None:
    bring(database, ROWS[:100])
    first = later(ROWS[0], 10_000)._replace(event_id=new_id(Prefix.EVENT))
    with pytest.raises(ImportRefused, match="holds one of these events already"):
        bring(database, [first])
    assert log.head() == ROWS[99].notification_id
