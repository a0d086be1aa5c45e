"""The orchestrator collects what it is asked to, and by itself once a day."""

from datetime import UTC, datetime, timedelta

import psycopg

from command_api.storage.outcome import Outcome
from command_api.storage.requests import (
    AGAIN_SECONDS,
    SCHEDULE,
    Collection,
    find_collection,
    request_collection,
    request_if_due,
)
from command_api.tables import ensure_tables
from schemas.commands.dataset import DeleteDataset
from schemas.events.job import AgentAccepted, AttemptReleased, JobQueued
from schemas.objects import content_key
from schemas.settings import NatsSettings, PostgresSettings, S3Settings
from schemas.work import Accepted, Released
from tests.integration.messaging.world import (
    Agent,
    World,
    active_orchestrator,
    eventually,
    settings_of,
)

DAY = 86400.0


async def collected(database: PostgresSettings, *, dry_run: bool) -> Outcome:
    async with await psycopg.AsyncConnection.connect(database.conninfo(), autocommit=True) as connection:
        identifier = await request_collection(connection, dry_run=dry_run, requested_by="usr_1")

        async def over() -> Collection | None:
            found = await find_collection(connection, identifier)
            return found if found.finished_at is not None else None

        done = await eventually(over, "the collection to end")
    assert (done.state, done.error) == ("done", None)
    assert done.outcome is not None
    return done.outcome


async def test_a_dry_run_tells_what_a_collection_then_does(
    world: World, database: PostgresSettings, nats: NatsSettings, s3: S3Settings
) -> None:
    settings = settings_of(database, nats, s3).model_copy(update={"collect_grace_seconds": -3600.0})
    lonely = content_key(world.organization_id, "ab" * 32)
    await world.store.put_bytes(lonely, b"12345")
    await world.store.put_bytes("elsewhere/objects/sha256/" + "ab" * 32, b"not of an organization")
    before = [key async for key, _ in world.store.iterate("")]
    async with active_orchestrator(settings):
        told = await collected(database, dry_run=True)
        assert [key async for key, _ in world.store.iterate("")] == before
        assert (told.total.objects, told.total.bytes) == (1, 5)
        assert [each.key for each in told.keys] == [lonely]
        (usage,) = told.usage
        assert (usage.organization_id, usage.purpose) == (world.organization_id, "content")
        assert usage.objects == len(before) - 1
        done = await collected(database, dry_run=False)
        assert (done.total, done.keys) == (told.total, told.keys)
        assert [key async for key, _ in world.store.iterate("")] == [key for key in before if key != lonely]
        await world.ask(DeleteDataset(dataset_id=world.dataset_id))
        # Its two files, its listing and its manifest.
        assert (await collected(database, dry_run=False)).by_purpose["content"].objects == 4


async def test_rows_that_have_served_their_time_go(
    world: World, agent: Agent, database: PostgresSettings
) -> None:
    job_id = await world.request_job()
    offer = await agent.take()
    await agent.report(offer, Accepted())
    await world.event(job_id, AgentAccepted)
    now = datetime.now(UTC)
    async with await psycopg.AsyncConnection.connect(database.conninfo(), autocommit=True) as connection:

        async def rows(table: str) -> int:
            cursor = await connection.execute(f"SELECT count(*) FROM {table}")  # type: ignore[arg-type]
            row = await cursor.fetchone()
            return int(row[0]) if row else 0

        for family, expiries in {"live": (-50, 50), "dead": (-50, -30), "lately": (-1,)}.items():
            await connection.execute(
                "INSERT INTO kinora_refresh_families (family_id, user_id, organization_id, workspace_id)"
                " VALUES (%s, 'usr_1', 'org_1', 'ws_1')",
                (family,),
            )
            for number, hours in enumerate(expiries):
                await connection.execute(
                    "INSERT INTO kinora_refresh_tokens (token_hash, family_id, expires_at)"
                    " VALUES (%s, %s, %s)",
                    (f"{family} {number}".encode(), family, now + timedelta(hours=hours)),
                )
        swept = (await collected(database, dry_run=False)).swept
        gone = {name: rows for name, rows in swept.items() if rows}
        assert gone == {"sessions": 1, "refresh_tokens": 1}
        assert "report_cursors" in swept
        assert (await rows("kinora_refresh_families"), await rows("kinora_refresh_tokens")) == (2, 2)
        assert await rows("kinora_report_cursors") == 1  # the attempt is still held
        await agent.report(offer, Released(reason="shut down"))
        await world.event(job_id, AttemptReleased)
        await world.event(job_id, JobQueued, count=2)
        assert (await collected(database, dry_run=True)).swept["report_cursors"] == 1
        assert (await collected(database, dry_run=False)).swept["report_cursors"] == 1
        assert await rows("kinora_report_cursors") == 0


async def test_it_happens_by_itself(database: PostgresSettings, nats: NatsSettings, s3: S3Settings) -> None:
    settings = settings_of(database, nats, s3).model_copy(update={"collect_every_seconds": 0.5})
    async with await psycopg.AsyncConnection.connect(database.conninfo(), autocommit=True) as connection:
        await ensure_tables(database.conninfo())
        # One broke off with the orchestrator that ran it.
        broken = await request_collection(connection, dry_run=False, requested_by="usr_1")
        await connection.execute("UPDATE kinora_collections SET state = 'running', started_at = now()")
        async with active_orchestrator(settings):

            async def twice() -> list[tuple[int, str]]:
                cursor = await connection.execute(
                    "SELECT id, requested_by FROM kinora_collections WHERE state = 'done' ORDER BY id"
                )
                rows: list[tuple[int, str]] = await cursor.fetchall()
                return rows if len(rows) >= 3 else []

            done = await eventually(twice, "two collections that nobody asked for")
    assert done[0] == (broken, "usr_1")
    assert {by for _, by in done[1:]} == {SCHEDULE}


async def test_one_that_failed_is_made_good_after_ten_minutes_and_one_that_was_done_after_its_time(
    database: PostgresSettings,
) -> None:
    await ensure_tables(database.conninfo())
    async with await psycopg.AsyncConnection.connect(database.conninfo(), autocommit=True) as connection:

        async def asks_after(state: str, seconds: float) -> bool:
            """Whether a daily collection is due, that long after another one was asked for."""
            await connection.execute("DELETE FROM kinora_collections")
            await connection.execute(
                "INSERT INTO kinora_collections (dry_run, requested_by, state, requested_at)"
                " VALUES (false, 'usr_1', %s, now() - make_interval(secs => %s)),"
                " (false, 'usr_1', 'done', now() - make_interval(secs => %s))",
                (state, seconds, DAY + 3600),
            )
            await request_if_due(connection, DAY)
            cursor = await connection.execute(
                "SELECT count(*) FROM kinora_collections WHERE state = 'requested' AND requested_by = %s",
                (SCHEDULE,),
            )
            return await cursor.fetchone() == (1,)

        await connection.execute("INSERT INTO kinora_log (log_id, created_at) VALUES ('log_1', '2026-01-01')")
        assert not await asks_after("failed", AGAIN_SECONDS - 60)
        assert await asks_after("failed", AGAIN_SECONDS + 60)
        assert not await asks_after("done", AGAIN_SECONDS + 60)
        assert not await asks_after("done", DAY - 60)
        assert await asks_after("done", DAY + 60)
