"""The doctor says how far read models and the stream are behind the log, when that is far."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import psycopg
import pytest

from kinora.doctor import insides
from kinora.doctor.finding import Finding
from projections import run as projecting
from projections.settings import ProjectionsSettings
from projections.views.findings import Finding as OpenFinding
from projections.views.findings import findings
from schemas.settings import NatsSettings, PostgresSettings, S3Settings
from tests.integration.messaging.relaying import Outside, outside_of, relaying, some_events
from tests.integration.messaging.test_auditor import running
from tests.integration.messaging.world import World, eventually, settings_of

LAG = 10


@pytest.fixture
async def outside(database: PostgresSettings, nats: NatsSettings) -> AsyncIterator[Outside]:
    async with outside_of(database, nats) as outside:
        yield outside


async def test_what_lags_is_named_until_it_has_caught_up(
    world: World,
    outside: Outside,
    database: PostgresSettings,
    nats: NatsSettings,
    s3: S3Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(insides, "_LAG", LAG)
    reads = 0

    async def counted(
        connection: psycopg.AsyncConnection[Any], *, status: Literal["open"]
    ) -> Sequence[OpenFinding]:
        nonlocal reads
        reads += 1
        return await findings(connection, status=status)

    monkeypatch.setattr(insides, "findings", counted)
    settings = settings_of(database, nats, s3)

    async def told() -> list[Finding]:
        head, log_id, found = await insides._database(settings)
        return [
            each
            for each in (*found, await insides._events(outside.client, head, log_id))
            if " behind" in each.detail
        ]

    async def well() -> bool:
        return not await told()

    for lagging in (True, False):
        async with (
            relaying(outside, world.log),
            running(projecting.run, ProjectionsSettings(postgres=database, poll_seconds=0.2)),
        ):
            await outside.caught_up(world.log)
            await eventually(well, "nothing behind")
        if lagging:
            await some_events(world, 2 * LAG)
            reads = 0
            said = await told()
            assert reads == 1, "the auditor's findings are looked up once"
            assert {each.verdict for each in said} == {"warning"}
            assert any(each.detail.startswith("jobs is ") for each in said)
            assert any(each.detail.startswith("EVENTS is ") for each in said)
            assert all(each.remedy for each in said)
