"""The auditor finds what differs from the log, has the stream repaired, and raises no false alarm."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.errors import NoStreamResponseError
from prometheus_client import REGISTRY

from command_api import auditor
from command_api.audit import sweeps
from command_api.audit.findings import Findings, Subject
from command_api.messaging.connection import connect
from command_api.messaging.epochs import before_first, epoch_of
from command_api.messaging.topology import events_config
from command_api.nats_auth.rights import auditor_rights
from command_api.settings import AuditorSettings
from kinora.doctor import insides
from projections import run as projecting
from projections.rebuild import rebuild
from projections.registry import VIEWS, view_named
from projections.settings import ProjectionsSettings
from schemas.events.finding import FindingOpened, FindingResolved
from schemas.settings import NatsSettings, PostgresSettings
from schemas.subjects import EVENTS_STREAM
from tests.integration.messaging.relaying import (
    MAX_BYTES,
    Outside,
    check,
    outside_of,
    relaying,
    some_events,
)
from tests.integration.messaging.world import World, eventually


@pytest.fixture
async def outside(database: PostgresSettings, nats: NatsSettings) -> AsyncIterator[Outside]:
    async with outside_of(database, nats) as outside:
        yield outside


@asynccontextmanager
async def running(serve: Any, settings: Any) -> AsyncIterator[None]:
    ready, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(serve(settings, stop, ready=ready.set))
    try:
        await asyncio.wait_for(ready.wait(), 20)
        yield
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await task


@dataclass
class Audited:
    """A log with its stream and read models, and what the auditor said of them."""

    world: World
    outside: Outside
    nats: NatsSettings
    postgres: PostgresSettings

    @property
    def conninfo(self) -> str:
        return self.outside.conninfo

    def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            return connection.execute(statement.encode(), values).rowcount

    def findings(self) -> list[FindingOpened | FindingResolved]:
        types = (FindingOpened.TYPE, FindingResolved.TYPE)
        recorded = [raw.recorded() for raw in self.world.log.read_all(0, 1000, types)]
        return [each.event for each in recorded]  # type: ignore[misc]

    async def found(self, count: int) -> list[FindingOpened | FindingResolved]:
        async def look() -> list[FindingOpened | FindingResolved] | None:
            found = await asyncio.to_thread(self.findings)
            return found if len(found) >= count else None

        return await eventually(look, f"{count} events of findings")

    async def views_reach(self, position: int) -> None:
        async def look() -> bool:
            with psycopg.connect(self.conninfo) as connection:
                rows = connection.execute("SELECT position FROM projections.views").fetchall()
            return len(rows) == len(VIEWS) and all(row[0] >= position for row in rows)

        await eventually(look, "views that have caught up")

    async def whole_rounds(self, count: int) -> None:
        """Wait until every walk went through everything so many more times."""

        async def rounds() -> dict[str, int]:
            async with await psycopg.AsyncConnection.connect(self.conninfo) as connection:
                return {each.sweep: each.rounds for each in await sweeps.sweeps(connection)}

        before = await rounds()
        tables = sum(len(view.tables) for view in VIEWS)

        async def look() -> bool:
            now = await rounds()
            done = [name for name, number in now.items() if number >= before.get(name, 0) + count]
            return len(done) == tables + 2

        await eventually(look, "whole rounds of every walk", seconds=40)

    def auditing(self, views: tuple[Any, ...] = VIEWS) -> Any:
        settings = AuditorSettings(postgres=self.postgres, nats=self.nats, round_seconds=0.05, effort=1)

        async def serve(settings: AuditorSettings, stop: asyncio.Event, *, ready: Any) -> None:
            await auditor.run(settings, stop, ready=ready, views=views)

        return running(serve, settings)


@pytest.fixture
async def audited(
    world: World, outside: Outside, database: PostgresSettings, nats: NatsSettings
) -> AsyncIterator[Audited]:
    async with (
        relaying(outside, world.log),
        running(projecting.run, ProjectionsSettings(postgres=database, poll_seconds=0.2)),
    ):
        audited = Audited(world, outside, nats, database)
        await world.request_job()
        await audited.views_reach(await asyncio.to_thread(world.log.head))
        yield audited


def open_findings(check: str, subject: str) -> float | None:
    return REGISTRY.get_sample_value("kinora_audit_open_findings", {"check": check, "subject": subject})


@pytest.mark.parametrize(
    ("tampering", "detail"),
    [
        (
            "UPDATE view_datasets.datasets SET document = jsonb_set(document, '{name}', '\"other\"')",
            "datasets differs in document.name",
        ),
        ("DELETE FROM view_datasets.datasets", "datasets lacks 1 rows and has 0 that no event explains"),
        (
            "INSERT INTO view_datasets.datasets SELECT 'ds_' || repeat('0', 32), organization_id, status,"
            " created_at, document FROM view_datasets.datasets",
            "datasets lacks 0 rows and has 1 that no event explains",
        ),
    ],
    ids=["changed", "deleted", "added"],
)
async def test_a_row_that_was_tampered_with_is_found_and_seen_to_be_put_right(
    audited: Audited, tampering: str, detail: str
) -> None:
    async with audited.auditing():
        assert audited.execute(tampering) == 1
        (opened,) = await audited.found(1)
        assert isinstance(opened, FindingOpened)
        assert (opened.check, opened.subject, opened.detail) == ("read_model", "datasets", detail)
        assert opened.remedy == "kinora projections rebuild datasets"
        assert "other" not in opened.model_dump_json()
        assert open_findings("read_model", "datasets") == 1
        # Seen again and again, it is told once.
        await audited.whole_rounds(1)
        await rebuild(audited.conninfo, view_named("datasets"))
        _, resolved = await audited.found(2)
        assert isinstance(resolved, FindingResolved)
    assert open_findings("read_model", "datasets") == 0
    assert len(await asyncio.to_thread(audited.findings)) == 2


async def test_an_auditor_that_begins_knows_what_a_former_one_found(audited: Audited) -> None:
    async with audited.auditing():
        audited.execute("UPDATE view_jobs.jobs SET status = 'failed'")
        await audited.found(1)
        await audited.views_reach(await asyncio.to_thread(audited.world.log.head))
    await rebuild(audited.conninfo, view_named("jobs"))
    async with audited.auditing():
        opened, resolved = await audited.found(2)
    assert isinstance(opened, FindingOpened)
    assert opened.detail == "jobs differs in status"
    assert isinstance(resolved, FindingResolved)


async def test_what_comes_back_is_told_although_the_read_model_still_shows_the_first_time(
    world: World,
) -> None:
    async def told() -> int:
        return len(world.log.read_all(0, 1000, [FindingOpened.TYPE]))

    subject = Subject("stream", "EVENTS", world.log.log_id)
    before = Findings(world.bus, ("stream",))
    await before.found(subject, "a hole", "wait", None)
    await before.healed(subject, "it is filled")
    begun = Findings(world.bus, ("stream",))
    begun._open[subject.finding_id] = subject  # what a read model that is behind would have it learn
    for _ in range(2):
        await begun.found(subject, "a hole", "wait", None)
    assert await told() == 2


@pytest.mark.parametrize("fault", ["hole", "bytes"])
async def test_a_fault_in_the_middle_of_the_stream_has_it_filled_anew(
    audited: Audited, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, outside = audited.world, audited.outside
    await some_events(world, 20)
    await outside.caught_up(world.log)
    await _break_in_the_middle(outside, fault, monkeypatch)
    async with audited.auditing():
        opened, resolved = await audited.found(2)
        assert isinstance(opened, FindingOpened)
        assert (opened.check, opened.subject, opened.about) == ("stream", EVENTS_STREAM, world.log.log_id)
        wrong = "is missing" if fault == "hole" else "has other bytes than the log"
        assert wrong in opened.detail
        assert isinstance(resolved, FindingResolved)
        await outside.in_epoch(2, world.log)
        await audited.whole_rounds(2)
    await outside.caught_up(world.log)
    await check(world, outside, epoch=2)
    assert len(await asyncio.to_thread(audited.findings)) == 2


async def test_a_second_auditor_waits_and_ends_what_a_killed_one_began(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, outside = audited.world, audited.outside
    await some_events(world, 20)
    await outside.caught_up(world.log)
    await _break_in_the_middle(outside, "hole", monkeypatch)
    settings = AuditorSettings(postgres=audited.postgres, nats=audited.nats, round_seconds=0.05, effort=1)
    ready, stop = (asyncio.Event(), asyncio.Event()), asyncio.Event()
    first, second = (asyncio.create_task(auditor.run(settings, stop, ready=each.set)) for each in ready)
    await asyncio.wait({asyncio.create_task(each.wait()) for each in ready}, return_when="FIRST_COMPLETED")
    one, other = (first, 1) if ready[0].is_set() else (second, 0)
    await audited.found(1)
    assert not ready[other].is_set()
    one.cancel()  # in the middle of the repair, which is the relay's
    await asyncio.wait({one})
    async with asyncio.timeout(20):
        await ready[other].wait()
    opened, resolved = await audited.found(2)
    assert isinstance(opened, FindingOpened)
    assert isinstance(resolved, FindingResolved)
    await outside.in_epoch(2, world.log)
    await audited.whole_rounds(1)
    stop.set()
    await asyncio.wait({first, second})
    await check(world, outside, epoch=2)
    assert len(await asyncio.to_thread(audited.findings)) == 2


async def test_under_load_with_lag_rebuilds_and_refills_nothing_is_found(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = audited.world

    async def work() -> None:
        while True:
            await some_events(world, 4)
            await world.request_job()
            await asyncio.sleep(0.1)

    async def disturb() -> None:
        for epoch in (1, 2):
            await audited.outside.epochs.declare_broken(epoch, "a test says so")
            for view in ("jobs", "agents", "activity"):
                await rebuild(audited.conninfo, view_named(view))
            await audited.outside.in_epoch(epoch + 1, None)

    monkeypatch.setattr("command_api.messaging.relay.CHECK_SECONDS", 0.5)
    async with audited.auditing():
        working = asyncio.create_task(work())
        try:
            await disturb()
        finally:
            working.cancel()
            await asyncio.wait({working})
        assert working.cancelled()
        await audited.whole_rounds(1)
    assert await asyncio.to_thread(audited.findings) == []


async def test_a_parked_stream_is_no_finding(audited: Audited) -> None:
    audited.execute("UPDATE view_datasets.datasets SET status = 'other'")
    audited.execute(
        "INSERT INTO projections.parked_streams (view, generation, stream_id, first_position, last_position,"
        " events, error) SELECT 'datasets', 1, id, 1, 1, 1, 'a test says so' FROM view_datasets.datasets"
    )
    labels = {"view": "datasets", "outcome": "parked"}
    before = REGISTRY.get_sample_value("kinora_audited_aggregates_total", labels) or 0
    async with audited.auditing((view_named("datasets"),)):

        async def looked() -> bool:
            return (REGISTRY.get_sample_value("kinora_audited_aggregates_total", labels) or 0) > before + 1

        await eventually(looked, "a look at the parked stream")
    assert await asyncio.to_thread(audited.findings) == []


async def test_a_view_that_cannot_be_compared_is_told_until_it_can(
    audited: Audited, caplog: pytest.LogCaptureFixture
) -> None:
    async def told(value: float) -> bool:
        return REGISTRY.get_sample_value("kinora_audit_incomparable", {"view": "agents"}) == value

    audited.execute("UPDATE projections.views SET version = version + 1 WHERE view = 'agents'")
    async with audited.auditing((view_named("agents"),)):
        await eventually(lambda: told(1), "the metric")
        assert "agents cannot be compared now: its tables are of version" in caplog.text
        async with await psycopg.AsyncConnection.connect(audited.conninfo, autocommit=True) as connection:
            everything = await insides._audit(connection, await insides._open_findings(connection))
            (said,) = [each for each in everything if "agents" in each.detail]
        assert said.verdict == "warning"
        assert said.remedy.endswith("kinora projections rebuild agents")
        audited.execute("UPDATE projections.views SET version = version - 1 WHERE view = 'agents'")
        await eventually(lambda: told(0), "the end of it")
    assert caplog.text.count("cannot be compared") == 1
    assert await asyncio.to_thread(audited.findings) == []


async def test_the_auditors_user_may_read_the_stream_and_nothing_more(
    outside: Outside, nats: NatsSettings
) -> None:
    async with connect(nats, "audit", rights=auditor_rights) as client:
        js = client.jetstream(timeout=0.5)
        assert (await js.stream_info(EVENTS_STREAM)).config.name == EVENTS_STREAM
        for stream in ("WORK", "REPORTS"):
            with pytest.raises((NatsTimeoutError, TimeoutError)):
                await js.stream_info(stream)
        with pytest.raises((NatsTimeoutError, TimeoutError, NoStreamResponseError)):
            await js.publish("kinora.v1._._.user.registered", b"{}", timeout=0.5)
    assert (await outside.topology.js.stream_info(EVENTS_STREAM)).state.messages == 0


async def _break_in_the_middle(outside: Outside, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a copy in the stream's place that is like it at both ends, as only an administrator can.

    Half a copy has lost its end. So no auditor runs yet, and the relay looks only afterwards, but soon.
    """
    monkeypatch.setattr("command_api.messaging.relay.CHECK_SECONDS", 600.0)
    js = outside.topology.js
    messages = await outside.messages()
    epoch = epoch_of(messages[0].seq or 0)
    await js.delete_stream(EVENTS_STREAM)
    lax = events_config(MAX_BYTES).evolve(first_seq=before_first(epoch) + 1, deny_delete=False)
    await js.add_stream(lax)
    middle = len(messages) // 2
    for number, message in enumerate(messages):
        headers = {name: value for name, value in (message.headers or {}).items() if "Batch" not in name}
        headers.pop("Nats-Expected-Last-Sequence", None)
        body = message.data or b""
        if fault == "bytes" and number == middle:
            body = body.replace(b"kinora.agent", b"kinora.urgent")
        await js.publish(message.subject or "", body, headers=headers)
    if fault == "hole":
        assert await js.delete_msg(EVENTS_STREAM, messages[middle].seq or 0)
    monkeypatch.setattr("command_api.messaging.relay.CHECK_SECONDS", 0.5)
