"""More than one API process, parts that are away, and clients that do not read."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from command_api.feed import frames
from tests.integration.api.following import following
from tests.integration.api.running import Account, Backing, Service, Visit, running_service
from tests.integration.api.stories import ready_inputs, register, request_job


@pytest.fixture(scope="module")
def second(service: Service) -> Iterator[Service]:
    """Another instance on the same database and store, for which NATS is away."""
    settings = service.parts.settings
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        away = settings.nats.model_copy(update={"url": f"nats://127.0.0.1:{reserved.getsockname()[1]}"})
    backing = Backing(settings.postgres, away, settings.s3, settings.secrets)
    with running_service(backing, projecting=False) as running:
        yield running


async def test_without_nats_everything_but_telemetry_works(
    second: Service, accounts: dict[str, Account]
) -> None:
    async with Visit(second) as visit:
        ada = await visit.come_in(accounts["ada"])
        found = (await ada.get("/health")).json()
        assert found["status"] == "degraded"
        # Nor does any agent of this test answer.
        assert {name for name, part in found["parts"].items() if not part["ok"]} - {"agents"} == {"nats"}
        assert (await ada.get("/health/ready")).status_code == 200
        item = await register(ada, "datasets", {"a": b"a"})
        assert (
            await ada.get(f"/datasets/{item['id']}", params={"min_position": item["last_position"]})
        ).is_success
        async with following(visit, ada) as follower:
            await follower.subscribe(item["last_position"] - 1)
            assert (await follower.events(1))[0]["event"]["subject"] == item["id"]


async def test_instances_show_each_others_writes(
    service: Service, second: Service, accounts: dict[str, Account]
) -> None:
    async with Visit(service) as here, Visit(second) as there:
        ada_here, ada_there = await here.come_in(accounts["ada"]), await there.come_in(accounts["ada"])
        async with following(here, ada_here) as follower_here, following(there, ada_there) as follower_there:
            await follower_here.subscribe("latest")
            await follower_there.subscribe("latest")
            await follower_here.until("caught_up")
            await follower_there.until("caught_up")
            items = [
                await register(person, "models", {"a": b"a"}, str(number))
                for number in range(4)
                for person in (ada_here, ada_there)
            ]
            expected = [item["last_position"] for item in items]
            for follower in (follower_here, follower_there):
                assert [frame["position"] for frame in await follower.events(8)] == expected


async def test_a_key_used_at_two_instances_is_one_command(
    service: Service, second: Service, accounts: dict[str, Account]
) -> None:
    async with Visit(service) as here, Visit(second) as there:
        people = [await here.come_in(accounts["ada"]), await there.come_in(accounts["ada"])]
        for number in range(5):
            answers = await asyncio.gather(
                *(person.post("/agents/enroll", {"name": "node"}, key=f"two-{number}") for person in people)
            )
            assert {answer.status_code for answer in answers} == {201}
            assert len({answer.json()["id"] for answer in answers}) == 1


async def test_a_client_that_does_not_read_is_cut_off_and_can_resume(
    second: Service, accounts: dict[str, Account]
) -> None:
    parts = second.parts
    impatient = replace(parts.feed, limits=replace(parts.feed.limits, stall_seconds=0.5))
    second.app.state.parts = replace(parts, feed=impatient)
    try:
        async with Visit(second) as visit:
            ada = await visit.come_in(accounts["ada"])
            inputs = await ready_inputs(visit, ada)
            # Far more than the buffers of two sockets take: 16 subscriptions of 10 events of 70 KB each.
            labels = {f"{number}{'😀' * 98}": "😀" * 200 for number in range(60)}
            for _ in range(10):
                last = (await request_job(ada, inputs, labels=labels))["last_position"]
            async with following(visit, ada) as follower:
                transport = follower.socket.transport
                transport.pause_reading()
                for number in range(parts.feed.limits.subscriptions):
                    await follower.subscribe("earliest", sub=f"{number}-" + "x" * 60)
                await until(lambda: feed_tasks(second) > 3)
                await until(lambda: feed_tasks(second) == 0)
                transport.resume_reading()
                assert await follower.closed() in (frames.STALLED, 1006)
            async with following(visit, ada) as follower:
                await follower.subscribe(last - 1)
                assert (await follower.events(1))[0]["position"] == last
    finally:
        second.app.state.parts = parts


def feed_tasks(service: Service) -> int:
    """Tasks that serve feed connections; none is left when all of them have ended."""
    return sum(task.get_name().startswith("feed-") for task in asyncio.all_tasks(service.loop))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens on another thread."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (no event crosses the threads)
            await asyncio.sleep(0.02)
