"""A COMMIT that happened but whose reply was lost must not look like somebody else's conflict."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from psycopg import Cursor
from psycopg.rows import DictRow

from command_api.eventlog.log import Append, EventLog
from command_api.eventlog.recorder import CommandRow
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings
from tests.integration.eventlog.cut_connection import CuttingProxy
from tests.integration.eventlog.log_samples import logged, one


@pytest.fixture
def proxy(database: PostgresSettings) -> Iterator[CuttingProxy]:
    # Not tmp_path: the path of a Unix socket has a limit of about 100 bytes.
    with TemporaryDirectory(prefix="kinora-") as folder, CuttingProxy(database, Path(folder)) as proxy:
        yield proxy


def test_a_lost_reply_gets_the_first_answer_and_no_duplicate(proxy: CuttingProxy) -> None:
    with EventLog.open(proxy.settings) as log:
        log.append([one(logged())])
        stream, other = new_id(Prefix.USER), new_id(Prefix.USER)
        proxy.arm()
        shares = log.append(
            [
                Append((logged(other), logged(stream)), CommandRow("usr_1", "a", b"", stream)),
                Append((logged(stream, 2),), CommandRow("usr_1", "b", b"", stream)),
            ]
        )
        assert proxy.cuts == 1
        assert shares == [(2, 3), (4,)]
        assert log.head() == 4
        stored = log.find_command("usr_1", "a")
        assert stored is not None
        assert (stored.first_position, stored.position) == (2, 3)


def test_a_connection_lost_before_the_commit_is_repeated(database: PostgresSettings) -> None:
    @dataclass
    class CutsItself:
        written: list[int] = field(default_factory=list)

        def write(self, cursor: Cursor[DictRow]) -> None:
            self.written.append(1)
            if len(self.written) == 1:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    row = CutsItself()
    with EventLog.open(database) as log:
        (positions,) = log.append([Append((logged(),), rows=(row,))])
        assert len(row.written) == 2
        assert [raw.position for raw in log.read_all(0, 10)] == list(positions)


def test_connections_that_died_unnoticed_are_replaced(database: PostgresSettings) -> None:
    end_all = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()
    """
    with EventLog.open(database) as log, psycopg.connect(database.conninfo(), autocommit=True) as other:
        log.append([one(logged())])
        other.execute(end_all, (database.dbname,))
        assert log.head() == 1
        other.execute(end_all, (database.dbname,))
        assert log.append([one(logged())]) == [(2,)]
