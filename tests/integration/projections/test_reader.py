"""Pages of the log, and one tail that many follow."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from projections.causality import CAUSES, EFFECTS
from projections.reader import LogReader, page_query
from projections.tail import LogTail
from schemas.ids import id_uuid
from tests.integration.projections.world import Writer, cut_connections, eventually, new_users, timed
from tests.stories import DATASET, JOB, ORGANIZATION, STRANGERS, USER, admitted, requested, whole_dataset

LONG = 60.0


@pytest.fixture
async def reader(conninfo: str) -> AsyncIterator[LogReader]:
    async with AsyncConnectionPool[AsyncConnection[Any]](
        conninfo, min_size=1, max_size=2, open=False
    ) as pool:
        yield LogReader(pool)


async def test_an_empty_database_is_an_empty_log(reader: LogReader) -> None:
    assert (await reader.page(0, 10), await reader.head(), await reader.log_id()) == ([], 0, None)


async def test_pages_and_filters(reader: LogReader, writer: Writer) -> None:
    first = writer.append(DATASET, *whole_dataset())
    second = writer.append(JOB, *admitted(), organization_id=STRANGERS)
    assert await reader.head() == second[-1]
    assert await reader.log_id() == writer.log.log_id
    assert [row.position for row in await reader.page(0, 100)] == [*first, *second]
    assert [row.position for row in await reader.page(first[2], 3)] == list(first[3:6])
    theirs = await reader.page(0, 100, organization_id=STRANGERS)
    assert [row.stream_id for row in theirs] == [JOB] * len(second)
    assert [row.type for row in await reader.page(0, 100, types=["kinora.job.planned"])] == [
        "kinora.job.planned"
    ]
    (row,) = await reader.page(0, 1, organization_id=ORGANIZATION, stream_id=DATASET)
    recorded = row.recorded()
    assert (recorded.position, recorded.stream_id, recorded.event) == (first[0], DATASET, whole_dataset()[0])
    public = row.public("log_1")
    assert (public["position"], public["source"], public["actor"]) == (first[0], "urn:kinora:log_1", USER)
    assert (row.version, row.event_id) == (1, recorded.metadata.event_id)


async def test_a_stream_is_paged_by_its_key(reader: LogReader, writer: Writer, conninfo: str) -> None:
    writer.append(JOB, *admitted())
    writer.logins(2000, new_users(200))
    last = writer.append(DATASET, *whole_dataset())[-1]
    async with await AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute("ANALYZE kinora_events")
        # As a prepared statement is planned after some runs: without knowing the values.
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        query = page_query({"organization_id", "stream_id"})
        values = {
            "after": 0,
            "limit": 1,
            "organization_id": ORGANIZATION,
            "stream_id": DATASET,
            "originator_id": id_uuid(DATASET),
        }
        plan = await (await connection.execute(f"EXPLAIN {query}", values)).fetchall()
    assert "kinora_events_pkey" in str(plan)
    rows = await reader.page(0, 100, stream_id=DATASET)
    assert [row.version for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1].position == last
    assert await reader.page(0, 100, stream_id=DATASET.replace("ds_", "mdl_")) == []


async def test_a_page_is_bounded_in_bytes(reader: LogReader, writer: Writer) -> None:
    positions = [*writer.append(DATASET, *whole_dataset()), *writer.append(JOB, *admitted())]
    whole = await reader.page(0, 100)
    size = len(whole[0].state) + len(whole[1].state)
    assert [row.position for row in await reader.page(0, 100, max_bytes=size)] == positions[:2]
    assert [row.position for row in await reader.page(0, 100, max_bytes=1)] == positions[:1], "never empty"
    by_one: list[int] = []
    while page := await reader.page(by_one[-1] if by_one else 0, 100, max_bytes=1, stream_id=JOB):
        by_one += [row.position for row in page]
    assert by_one == [row.position for row in await reader.page(0, 100, stream_id=JOB)]
    assert await reader.page(0, 100, max_bytes=2**20) == whole
    assert await reader.events([positions[3], positions[1]]) == [whole[1], whole[3]]
    assert await reader.last(ORGANIZATION, positions[2]) == positions[2]
    assert await reader.last(STRANGERS, positions[-1]) == 0


async def test_a_time_is_found_among_positions(reader: LogReader, writer: Writer, conninfo: str) -> None:
    assert await reader.place_of(datetime.now(UTC)) == 0
    last = writer.logins(60, new_users(3))
    async with await AsyncConnection.connect(conninfo, autocommit=True) as connection:
        # A minute apart, each second one half a minute early, as by another machine's clock.
        await connection.execute(
            "UPDATE kinora_events SET recorded_at ="
            " timestamptz '2026-01-01' + notification_id * interval '1 min'"
            " - (notification_id % 2) * interval '90 s'"
        )
        times = await (
            await connection.execute("SELECT notification_id, recorded_at FROM kinora_events ORDER BY 1")
        ).fetchall()
    for _, time in times:
        first = min(position for position, at in times if at >= time)
        assert await reader.place_of(time) == first - 1
    assert await reader.place_of(datetime(2100, 1, 1, tzinfo=UTC)) == last
    assert await reader.place_of(datetime(2000, 1, 1, tzinfo=UTC)) < times[0][0]
    # The first moment that can be written: in UTC it lies before the first year.
    assert await reader.place_of(datetime.fromisoformat("0001-01-01T00:00:00+23:59")) < times[0][0]


async def test_causes_and_effects_are_found_by_index(writer: Writer, conninfo: str) -> None:
    writer.logins(2000, new_users(200))
    values = {"event_id": "evt_" + "0" * 32, "organization_id": ORGANIZATION, "user_id": USER, "most": 100}
    async with await AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute("ANALYZE kinora_events")
        # As a prepared statement is planned after some runs: without knowing the values.
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        for query, index in ((CAUSES, "kinora_events_event_id_idx"), (EFFECTS, "kinora_events_effects_idx")):
            plan = str(await (await connection.execute(f"EXPLAIN {query}", values)).fetchall())
            assert index in plan, plan
            assert "Seq Scan on kinora_events" not in plan


async def test_one_append_wakes_everybody(writer: Writer, conninfo: str) -> None:
    head = writer.logins(1, new_users(1))
    async with LogTail(conninfo, poll_seconds=LONG) as tail:
        assert await tail.wait(0, timeout=20) == head
        waiters = [asyncio.create_task(tail.wait(head, timeout=20)) for _ in range(500)]
        await asyncio.sleep(0)
        with timed() as elapsed:
            newest = await asyncio.to_thread(writer.logins, 1, new_users(1))
            assert await asyncio.gather(*waiters) == [newest] * 500
            assert elapsed() < 5
        assert await tail.wait(newest, timeout=0.1) == newest, "nothing came, so the head is as it was"
        assert tail.since(0) is None, "this tail keeps nothing"


async def test_a_cut_tail_misses_nothing(writer: Writer, conninfo: str) -> None:
    users = new_users(2)
    head = writer.logins(1, users)
    async with LogTail(conninfo, poll_seconds=LONG, keep_bytes=2**20) as tail:
        await tail.wait(0, timeout=20)
        for _ in range(3):
            assert cut_connections(conninfo) == 1
            last = await asyncio.to_thread(writer.logins, 5, users)
            await tail.wait(last - 1, timeout=20)

            async def connected() -> bool:
                return tail.head >= last  # noqa: B023 - awaited within the round

            await eventually(connected, "the tail")
        kept = tail.since(head)
        assert kept is not None
        assert [row.position for row in kept] == list(range(head + 1, head + 16))


async def test_the_newest_events_are_kept_and_older_ones_read(writer: Writer, conninfo: str) -> None:
    before = writer.append(JOB, requested())[-1]
    async with LogTail(conninfo, poll_seconds=LONG, keep_bytes=6000) as tail:
        await tail.wait(0, timeout=20)
        assert tail.since(before) == []
        assert tail.since(before - 1) is None, "what came before the tail is read in pages"
        users = new_users(1)
        last = await asyncio.to_thread(writer.logins, 40, users)
        await tail.wait(last - 1, timeout=20)
        assert tail.since(before) is None, "too much to keep"
        kept = tail.since(last - 5)
        assert kept is not None
        assert [row.position for row in kept] == list(range(last - 4, last + 1))
        assert {row.recorded().stream_id for row in kept} == set(users)
