"""Whoever follows positions sees every event, however many write at once."""

import threading
import time

import psycopg
from psycopg import Cursor
from psycopg.rows import DictRow

from command_api.eventlog.log import Append, EventLog
from schemas.settings import PostgresSettings
from tests.integration.eventlog.log_samples import logged, one

WRITERS = 6
SECONDS = 2.5


def test_concurrent_writers_lose_nothing_for_a_tailing_reader(database: PostgresSettings) -> None:
    with EventLog.open(database) as log, EventLog.open(database) as other, EventLog.open(database) as tail:
        written: list[list[int]] = [[] for _ in range(WRITERS)]
        stop = threading.Event()

        def write(number: int) -> None:
            mine = log if number % 2 else other
            while not stop.is_set():
                (positions,) = mine.append([Append(tuple(logged() for _ in range(1 + number * 5)))])
                written[number].extend(positions)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
        for thread in threads:
            thread.start()
        seen: list[int] = []
        deadline = time.monotonic() + SECONDS
        while True:
            if time.monotonic() > deadline and not stop.is_set():
                stop.set()
                for thread in threads:
                    thread.join()
            page = tail.read_all(seen[-1] if seen else 0, 500)
            seen.extend(raw.position for raw in page)
            if stop.is_set() and not page:
                break
    assert seen == sorted(position for positions in written for position in positions)
    assert len(seen) > WRITERS


def test_a_later_append_cannot_overtake_one_that_is_not_committed_yet(database: PostgresSettings) -> None:
    entered, release = threading.Event(), threading.Event()

    class Held:
        """Keeps its transaction open with positions already drawn."""

        def write(self, cursor: Cursor[DictRow]) -> None:
            entered.set()
            assert release.wait(30)

    with EventLog.open(database) as log, psycopg.connect(database.conninfo(), autocommit=True) as watcher:
        positions: dict[str, tuple[int, ...]] = {}

        def append(name: str, item: Append) -> None:
            (positions[name],) = log.append([item])

        first = threading.Thread(target=append, args=("first", Append((logged(),), rows=(Held(),))))
        second = threading.Thread(target=append, args=("second", one(logged())))
        first.start()
        assert entered.wait(30)
        second.start()
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'kinora_events'::regclass"
        deadline = time.monotonic() + 30
        while watcher.execute(waiting).fetchone() is None:
            assert time.monotonic() < deadline, "the second append never waited for the lock"
        assert log.read_all(0, 10) == []
        release.set()
        first.join()
        second.join()
        assert positions == {"first": (1,), "second": (2,)}
