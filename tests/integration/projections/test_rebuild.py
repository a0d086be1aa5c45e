"""New tables are built beside the old ones, checked and swapped, while reads go on."""

import asyncio
from typing import Any

import pytest
from psycopg import AsyncConnection

from projections import catalogue
from projections.errors import RebuildBusy, RebuildRefused
from projections.parking import parked_streams
from projections.rebuild import rebuild
from projections.rebuild_requests import Rebuild, find_rebuild, recent_rebuilds, request_rebuild
from projections.registry import VIEWS
from projections.replay import replay_parked
from projections.settings import ProjectionsSettings
from projections.view import Rows, Table
from projections.views import jobs
from projections.views.activity import Activities, ActivityFold
from schemas.envelope import Recorded
from schemas.ids import Prefix, new_id
from tests.integration.projections.world import (
    Tally,
    TallyFold,
    Writer,
    caught_up,
    cut_connections,
    eventually,
    new_users,
    position_of,
    running,
    scalar,
    tallies,
)
from tests.stories import ORGANIZATION, whole_job

TABLES = """
SELECT schemaname || '.' || tablename FROM pg_tables
 WHERE schemaname LIKE 'view\\_%%' ORDER BY 1
"""


async def none_retired(connection: AsyncConnection[Any]) -> bool:
    query = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'view\\_%%\\_retired'"
    return bool(await scalar(connection, query) == 0)


async def content(connection: AsyncConnection[Any]) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every view."""
    found = await connection.execute(TABLES)
    tables = [name for (name,) in await found.fetchall()]
    rows = {}
    for table in tables:
        schema, name = table.split(".")
        query = f'SELECT t::text FROM "{schema}"."{name}" t ORDER BY 1'
        rows[table] = await (await connection.execute(query)).fetchall()
    return rows


async def generation(connection: AsyncConnection[Any], view: str) -> tuple[int, int]:
    (status,) = [each for each in await catalogue.statuses(connection) if each.view == view]
    return status.generation, status.version


async def ended(connection: AsyncConnection[Any], identifier: int) -> Rebuild:
    async def over() -> Rebuild | None:
        found = await find_rebuild(connection, identifier)
        return found if found.state in ("done", "failed") else None

    found = await eventually(over, f"rebuild {identifier} to end")
    assert found is not None
    return found


async def test_reads_are_served_throughout_and_the_content_is_the_same(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer, conninfo: str
) -> None:
    # Enough slices for two processes of their own.
    settings = settings.model_copy(update={"rebuild_slice_events": 100, "rebuild_processes": 2})
    ids = [new_id(Prefix.JOB) for _ in range(20)]
    for job_id in ids:
        last = writer.append(job_id, *whole_job(job_id=job_id))[-1]
    over = asyncio.Event()

    async def read() -> int:
        reads = 0
        async with await AsyncConnection.connect(conninfo, autocommit=True) as reader:
            while not over.is_set():
                page = await jobs.page(reader, ORGANIZATION, limit=50)
                assert [each.id for each in page] == ids[::-1]
                found = await jobs.get(reader, ORGANIZATION, ids[reads % len(ids)])
                assert found is not None
                assert (found.status, len(found.checkpoints)) == ("succeeded", 1)
                reads += 1
        return reads

    async with running(settings, VIEWS):
        await caught_up(connection, [view.name for view in VIEWS], last)
        before = await content(connection)
        reader = asyncio.create_task(read())
        requests = [
            await request_rebuild(connection, view.name, reason="test", requested_by="system:test")
            for view in VIEWS
        ]
        for request in requests:
            assert request is not None
            done = await ended(connection, request)
            assert (done.state, done.position, done.progress) == ("done", last, 1.0), done.error
        over.set()
        assert await reader > 10
    assert await content(connection) == before
    generations = {view.name: await generation(connection, view.name) for view in VIEWS}
    assert generations == {view.name: (2, view.version) for view in VIEWS}


async def test_events_that_arrive_meanwhile_are_in_the_new_tables(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer
) -> None:
    users = new_users(3)
    last = writer.logins(200, users)
    async with running(settings, [Tally()]):
        await caught_up(connection, ["tally"], last)
        for round_ in range(3):
            request = await request_rebuild(connection, "tally", reason="test", requested_by="system:test")
            assert request is not None
            last = await asyncio.to_thread(writer.logins, 60, users)
            assert (await ended(connection, request)).state == "done"
            await caught_up(connection, ["tally"], last)
            assert sum((await tallies(connection)).values()) == 200 + 60 * (round_ + 1)


async def test_a_new_version_is_built_at_the_next_start(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer
) -> None:
    class Renamed(Tally):
        tables = (*Tally.tables, Table(name="fresh", stream="id", columns=("id text",), key="id"))

    users = new_users(2)
    async with running(settings, [Tally()]):
        await caught_up(connection, ["tally"], writer.logins(10, users))
    async with running(settings, [Renamed(version=2)]):
        await caught_up(connection, ["tally"], writer.logins(10, users))

        async def swapped() -> bool:
            return await generation(connection, "tally") == (2, 2)

        await eventually(swapped, "the new version")
        await caught_up(connection, ["tally"], writer.logins(2, users))
    assert await tallies(connection) == dict.fromkeys(users, 11)
    assert await scalar(connection, "SELECT count(*) FROM view_tally.fresh") == 0
    assert await scalar(connection, "SELECT to_regnamespace('view_tally_retired') IS NULL")
    assert [each.reason for each in await recent_rebuilds(connection)] == [
        "the view's version is 2, its tables are of version 1"
    ]


async def test_lost_tables_are_built_anew(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer, conninfo: str
) -> None:
    users = new_users(2)
    async with running(settings, [Tally()]):
        await caught_up(connection, ["tally"], writer.logins(10, users))
        await connection.execute("DROP SCHEMA view_tally CASCADE")
        last = writer.logins(2, users)

        async def there() -> bool:
            return bool(await scalar(connection, "SELECT to_regclass('view_tally.tallies') IS NOT NULL"))

        await eventually(there, "the new tables")
        await caught_up(connection, ["tally"], last)
    assert await tallies(connection) == dict.fromkeys(users, 6)
    assert await parked_streams(connection) == ()


async def test_tables_that_disagree_with_the_log_are_not_swapped_in(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str, settings: ProjectionsSettings
) -> None:
    class Forgetful(Tally):
        census = (("tallies", None),)

    users = new_users(2)
    async with running(settings, [Tally()]):
        await caught_up(connection, ["tally"], writer.logins(10, users))
    with pytest.raises(RebuildRefused, match=r"tallies has 2 rows, the log up to position \d+ asks for 10"):
        await rebuild(conninfo, Forgetful())
    assert await tallies(connection) == dict.fromkeys(users, 5)
    assert await generation(connection, "tally") == (1, 1)
    (failed,) = await recent_rebuilds(connection)
    assert failed.state == "failed"
    assert "RebuildRefused" in str(failed.error)
    assert await scalar(connection, "SELECT to_regnamespace('view_tally_next') IS NULL")


async def test_a_rebuild_that_would_lose_a_stream_is_refused(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str, settings: ProjectionsSettings
) -> None:
    good, bad = new_users(2)
    async with running(settings, [Tally()]):
        await caught_up(connection, ["tally"], writer.logins(10, [good, bad]))
    with pytest.raises(RebuildRefused, match=bad):
        await rebuild(conninfo, Tally(fails_on=lambda event: event.stream_id == bad))
    assert await tallies(connection) == {good: 5, bad: 5}
    assert await parked_streams(connection) == ()


async def test_a_fold_that_comes_to_other_rows_the_second_time_is_not_swapped_in(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str, settings: ProjectionsSettings
) -> None:
    class Hasty(TallyFold):
        """Forgets what a stream has had before: right only for streams of one event."""

        def rows(self) -> Rows:
            return {table: [(user, 1) for user, _ in rows] for table, rows in super().rows().items()}

    class Wrong(Tally):
        def begin(self) -> TallyFold:
            return Hasty(self)

    users = new_users(3)
    async with running(settings, [Tally()]):
        await caught_up(connection, ["tally"], writer.logins(9, users))
    with pytest.raises(
        RebuildRefused, match=r"folded a second time, usr_\w+ comes to other rows of .* tallies"
    ):
        await rebuild(conninfo, Wrong())
    assert await tallies(connection) == dict.fromkeys(users, 3)
    assert (await recent_rebuilds(connection))[0].state == "failed"
    assert await scalar(connection, "SELECT to_regnamespace('view_tally_next') IS NULL")


async def test_what_was_damaged_before_is_recorded_and_made_good(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str, settings: ProjectionsSettings
) -> None:
    users = new_users(3)
    async with running(settings, [Tally()]):
        await caught_up(connection, ["tally"], last := writer.logins(9, users))
    await connection.execute("UPDATE view_tally.tallies SET logins = 99 WHERE user_id = %s", [users[0]])
    damaged = (await rebuild(conninfo, Tally())).checked
    assert damaged is not None
    assert (damaged.position, damaged.streams, damaged.events) == (last, 3, 9)
    assert damaged.differing == ("tallies",)
    assert await tallies(connection) == dict.fromkeys(users, 3)
    again = (await rebuild(conninfo, Tally())).checked
    assert again is not None
    assert again.differing == ()
    assert again.tables == damaged.tables
    (other,) = new_users(1)
    writer.logins(1, [other])
    later = (await rebuild(conninfo, Tally())).checked
    assert later is not None
    assert later.tables["tallies"].rows == 4
    assert later.tables["tallies"].checksum != again.tables["tallies"].checksum


async def test_a_stream_that_cannot_be_folded_is_parked_where_it_stopped(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str, settings: ProjectionsSettings
) -> None:
    good, bad = new_users(2)
    async with running(settings, [Tally()]):
        await caught_up(connection, ["tally"], last := writer.logins(10, [good, bad]))
    done = await rebuild(conninfo, Tally(version=2, fails_on=lambda event: event.position == last - 4))
    assert done.state == "done"
    assert await tallies(connection) == {good: 5, bad: 2}
    (parked,) = await parked_streams(connection)
    assert (parked.stream_id, parked.first_position, parked.last_position) == (bad, last - 4, last)
    assert (parked.events, parked.error) == (3, f"ValueError: cannot fold {last - 4}")
    replayed = await replay_parked(conninfo, Tally(version=2))
    assert (replayed.streams, replayed.events) == ((bad,), 3)
    assert await tallies(connection) == {good: 5, bad: 5}


class Halting(Activities):
    """A row per event, as far as it can be told."""

    version = Activities.version + 1

    def __init__(self, stream_id: str, after: int) -> None:
        self._stream_id, self._after = stream_id, after

    def begin(self) -> ActivityFold:
        halting = self

        class Fold(ActivityFold):
            def add(self, recorded: Recorded) -> None:
                if (recorded.stream_id, recorded.version) == (halting._stream_id, halting._after + 1):
                    raise ValueError("no words")
                super().add(recorded)

        return Fold()


async def test_what_waits_in_parked_streams_is_not_asked_for(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str
) -> None:
    good, bad = new_users(2)
    writer.logins(10, [good, bad])
    done = await rebuild(conninfo, Halting(bad, 2))
    assert done.state == "done"
    assert await scalar(connection, "SELECT count(*) FROM view_activity.activities") == 7
    (parked,) = await parked_streams(connection)
    assert (parked.stream_id, parked.events) == (bad, 3)
    # While the tables were filled, autovacuum left them alone.
    options = "SELECT reloptions FROM pg_class WHERE oid = 'view_activity.activities'::regclass"
    assert await scalar(connection, options) is None


async def test_a_stream_whose_rows_cannot_be_stored_is_parked_as_a_whole(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str, settings: ProjectionsSettings
) -> None:
    class Narrow(Tally):
        tables = (
            Table(
                name="tallies",
                stream="user_id",
                columns=("user_id text NOT NULL", "logins integer NOT NULL CHECK (logins < 4)"),
                key="user_id",
            ),
        )

    good, bad = new_users(2)
    async with running(settings, [Tally()]):
        await caught_up(connection, ["tally"], writer.logins(6, [good, bad]))
    last = writer.logins(2, [bad])
    done = await rebuild(conninfo, Narrow(version=2))
    assert (done.state, await tallies(connection)) == ("done", {good: 3})
    (parked,) = await parked_streams(connection)
    assert (parked.stream_id, parked.first_position, parked.last_position) == (bad, last - 6, last)
    assert parked.events == 5
    assert parked.error.startswith("CheckViolation: ")


async def test_a_rebuild_takes_parked_streams_up_again(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str, settings: ProjectionsSettings
) -> None:
    good, bad = new_users(2)
    async with running(settings, [Tally(fails_on=lambda event: event.stream_id == bad)]):
        await caught_up(connection, ["tally"], writer.logins(10, [good, bad]))
    assert await tallies(connection) == {good: 5}
    done = await rebuild(conninfo, Tally())
    assert (done.state, done.generation) == ("done", 2)
    assert await tallies(connection) == {good: 5, bad: 5}
    assert await parked_streams(connection) == ()


async def test_a_rebuild_that_was_cut_off_goes_on_from_its_position(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str, settings: ProjectionsSettings
) -> None:
    users = new_users(20)
    last = writer.logins(40, users)
    async with running(settings, [Tally()]):
        await caught_up(connection, ["tally"], last)

    def cut(reached: Rebuild) -> None:
        if reached.position >= last // 2:
            cut_connections(conninfo)

    with pytest.raises(Exception, match=r"terminat|closed|lost"):
        await rebuild(conninfo, Tally(), slice_events=4, progress=cut)
    (half,) = await recent_rebuilds(connection)
    assert half.state == "running"
    assert 0 < half.position < last
    seen: list[Rebuild] = []
    done = await rebuild(conninfo, Tally(), identifier=half.id, slice_events=4, progress=seen.append)
    assert done.state == "done"
    assert min(each.position for each in seen) > half.position
    assert await tallies(connection) == dict.fromkeys(users, 2)
    assert await position_of(connection, "tally") == last


async def test_one_builder_at_a_time(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str, settings: ProjectionsSettings
) -> None:
    writer.logins(3, new_users(1))
    busy: list[BaseException] = []
    tasks: list[asyncio.Task[Rebuild]] = []

    def second(_: Rebuild) -> None:
        if not tasks:
            tasks.append(asyncio.create_task(rebuild(conninfo, Tally())))

    class Slow(Tally):
        async def apply(self, cursor: Any, events: Any) -> None:
            await super().apply(cursor, events)
            (error,) = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(error, BaseException)
            busy.append(error)

    await catalogue.install(connection)
    await rebuild(conninfo, Slow(), progress=second)
    assert [type(each) for each in busy] == [RebuildBusy]


async def test_an_unknown_view_is_answered(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer
) -> None:
    async with running(settings, [Tally()]):
        request = await request_rebuild(connection, "tallies", reason="test", requested_by="system:test")
        assert request is not None
        failed = await ended(connection, request)
    assert (failed.state, failed.error) == ("failed", "no view is named tallies; there are tally")


async def test_a_second_request_joins_the_first(connection: AsyncConnection[Any]) -> None:
    await catalogue.install(connection)
    first = await request_rebuild(connection, "tally", reason="first", requested_by="system:test")
    assert first is not None
    assert await request_rebuild(connection, "tally", reason="second", requested_by="system:test") == first
