"""A NATS subscriber that comes too late is told so: a consumer goes on with what is left and says nothing."""

from collections.abc import AsyncIterator

import pytest
from nats.js.errors import NotFoundError

from command_api.connected import connected
from command_api.messaging.connection import connect
from command_api.messaging.subscriber_cursors import SubscriberCursors
from kinora.doctor import insides
from projections import run as projecting
from projections.settings import ProjectionsSettings
from schemas.commands.finding import OpenFinding
from schemas.commands.subscription import DeleteSubscription
from schemas.events.finding import FindingOpened, FindingResolved
from schemas.ids import Prefix, new_id
from schemas.settings import NatsSettings, PostgresSettings, S3Settings
from schemas.subjects import EVENTS_STREAM, subscriber_durable
from tests.integration.messaging.test_auditor import running
from tests.integration.messaging.test_subscribers import fetched, positions, subscribed, subscriber
from tests.integration.messaging.world import World, active_orchestrator, eventually, settings_of

ENROLLED = "kinora.agent.enrolled"
ROOM = 2**20


@pytest.fixture
async def orchestrator(
    world: World,
    database: PostgresSettings,
    nats: NatsSettings,
    s3: S3Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[None]:
    for part in ("relay", "subscribers"):
        monkeypatch.setattr(f"command_api.messaging.{part}.CHECK_SECONDS", 0.1)
    settings = settings_of(database, nats, s3).model_copy(update={"events_max_bytes": ROOM})
    async with active_orchestrator(settings):
        yield


async def fill(world: World) -> None:
    """More than the stream has room for."""
    for number in range(8):
        await world.ask(
            OpenFinding(
                finding_id=new_id(Prefix.FINDING),
                check="read_model",
                subject="jobs",
                about=f"job_{number:032x}",
                detail="x" * (ROOM // 5),
                remedy="none",
            )
        )


def told(world: World) -> dict[str, FindingOpened]:
    """What was said of subscribers, by subscription."""
    opened = [raw.recorded() for raw in world.log.read_all(0, 1000, types=(FindingOpened.TYPE,))]
    mine = {each.metadata.organization_id for each in opened if each.event.check == "subscriber"}  # type: ignore[attr-defined]
    assert mine <= {world.organization_id}
    events = [each.event for each in opened if isinstance(each.event, FindingOpened)]
    found = [event for event in events if event.check == "subscriber"]
    assert len({event.about for event in found}) == len(found), "each is told once"
    return {event.about: event for event in found}


async def test_who_comes_too_late_is_told_and_nobody_else(
    world: World, orchestrator: None, nats: NatsSettings, database: PostgresSettings
) -> None:
    await world.enroll()
    late = await subscribed(world, types=(ENROLLED,))
    other = await subscribed(world, types=("kinora.job.succeeded",))
    quick = await subscribed(world, types=(ENROLLED,))
    enrolled = len(world.log.read_all(0, 1000, types=(ENROLLED,)))
    async with subscriber(nats, world, quick) as client:
        messages = await fetched(client, subscriber_durable(world.organization_id, quick), enrolled)
    cursors = SubscriberCursors(database.conninfo())

    async def is_noted() -> bool:
        return (await cursors.all()).get(quick, 0) >= positions(messages)[-1]

    await eventually(is_noted, "the note of what was acknowledged, while the stream has it")
    await fill(world)

    async def is_told() -> bool:
        return late in told(world)

    await eventually(is_told, "the finding of who reads nothing")
    (made,) = [raw.position for raw in world.log.read_all(0, 1000, types=(ENROLLED,))][-1:]
    finding = told(world)[late]
    assert (finding.subject, "--after 0" in finding.remedy) == (EVENTS_STREAM, True)
    assert int(finding.remedy.rsplit(" ", 1)[1]) >= made, "up to where the export has to go"
    begun_late = await subscribed(world, types=(ENROLLED,))

    async def is_told_too() -> bool:
        return begun_late in told(world)

    await eventually(is_told_too, "the finding of who wants what the stream dropped before")
    assert {other, quick}.isdisjoint(told(world))

    read_side = ProjectionsSettings(postgres=database, poll_seconds=0.2)
    async with running(projecting.run, read_side), connected(database.conninfo(), autocommit=True) as reading:

        async def is_shown() -> bool:
            return len(insides._subscribers(await insides._open_findings(reading))) == 2

        await eventually(is_shown, "the doctor to name both")
        said = insides._subscribers(await insides._open_findings(reading))
        assert {each.verdict for each in said} == {"failed"}
        assert {each.detail.split()[0] for each in said} == {late, begun_late}

    await world.ask(DeleteSubscription(subscription_id=late))

    async def is_resolved() -> bool:
        return bool(world.log.read_all(0, 1000, types=(FindingResolved.TYPE,)))

    await eventually(is_resolved, "the end of the finding with its subscription")
    async with connect(nats, "test") as control:
        with pytest.raises(NotFoundError):
            await control.jetstream().consumer_info(
                EVENTS_STREAM, subscriber_durable(world.organization_id, late)
            )
