"""Reports arrive once, whole and in order, whatever happens to NATS and to the agent."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from kinora.local.servers import EmbeddedServers
from schemas.ids import Prefix, new_id
from schemas.subjects import REPORTS_STREAM
from schemas.work import Accepted, HeldItem, Released, Report, Stopped, Warned
from tests.integration.trainer_agent.conftest import Parts
from tests.integration.trainer_agent.peer import Peer
from trainer_agent import recovery
from trainer_agent.folders import locked
from trainer_agent.reporter import reporting
from trainer_agent.settings import AgentSettings
from trainer_agent.spool import Spool


def numbered(number: int) -> Warned:
    return Warned(code="n", message=str(number))


def _warning(held: HeldItem, sequence: int) -> Report:
    return Report(
        item_id=held.item_id,
        attempt=held.attempt,
        sequence=sequence,
        occurred_at=datetime.now(UTC),
        body=numbered(sequence),
    )


async def test_a_restart_of_nats_loses_nothing_and_keeps_the_order(
    peer: Peer, parts: Parts, settings: AgentSettings, servers: EmbeddedServers, tmp_path: Path
) -> None:
    spool = Spool(tmp_path / "spool")
    async with reporting(parts.connection, settings, parts.held, spool) as reporter:
        for number in range(20):
            await reporter.report(numbered(number))
        restart = asyncio.create_task(servers.restart("nats"))
        number = 20
        while not restart.done():
            await reporter.report(numbered(number))
            number += 1
        await restart
        await reporter.report(numbered(number))
        await asyncio.wait_for(reporter.drained(), 60)
    await peer.until(lambda: len(peer.bodies()) == number + 1)
    assert number > 20
    # An acknowledgement of the peer's may be lost with the server, and then a report comes to it again.
    assert list(dict.fromkeys(report.sequence for report in peer.reports)) == list(range(1, number + 2))
    assert [body.message for body in peer.bodies() if isinstance(body, Warned)] == [
        str(one) for one in range(number + 1)
    ]


async def test_a_full_stream_is_waited_out(
    peer: Peer, parts: Parts, settings: AgentSettings, tmp_path: Path
) -> None:
    jetstream = peer.client.jetstream()
    config = (await jetstream.stream_info(REPORTS_STREAM)).config
    await jetstream.update_stream(config.evolve(max_msgs=0, max_bytes=1))
    async with reporting(parts.connection, settings, parts.held, Spool(tmp_path / "spool")) as reporter:
        await reporter.report(Accepted())
        waiting = asyncio.create_task(reporter.drained())
        done, _ = await asyncio.wait({waiting}, timeout=1.0)
        assert not done
        assert peer.reports == []
        await jetstream.update_stream(config)
        await asyncio.wait_for(waiting, 30)
    await peer.reported(Accepted)


async def test_a_restarted_agent_sends_the_rest_and_gives_the_attempt_back(
    peer: Peer, parts: Parts, settings: AgentSettings
) -> None:
    held = HeldItem(item_id=new_id(Prefix.JOB), attempt=3)
    with locked(settings.work_folder) as folder:
        spool = Spool(folder.spool(held))
        async with reporting(parts.connection, settings, held, spool) as reporter:
            await reporter.report(Accepted())
            await asyncio.wait_for(reporter.drained(), 30)
        # The agent died between writing the next report and sending it.
        interrupted = Spool.load(folder.spool(held))
        interrupted.write(_warning(held, interrupted.last_sequence + 1))
        interrupted.close()

        assert list(recovery.left_over(folder)) == [held]
        await asyncio.wait_for(recovery.give_back(parts.connection, settings, folder, held), 30)

        await peer.reported(Released)
        assert [(one.sequence, one.body.kind) for one in peer.reports] == [
            (1, "accepted"),
            (2, "warned"),
            (3, "released"),
        ]
        assert list(recovery.left_over(folder)) == []


async def test_an_attempt_that_had_ended_is_not_given_back(
    peer: Peer, parts: Parts, settings: AgentSettings
) -> None:
    held = HeldItem(item_id=new_id(Prefix.JOB), attempt=1)
    with locked(settings.work_folder) as folder:
        spool = Spool(folder.spool(held))
        spool.write(_warning(held, 1))
        spool.write(_warning(held, 2).model_copy(update={"body": Stopped(step=7)}))
        spool.close()
        await asyncio.wait_for(recovery.give_back(parts.connection, settings, folder, held), 30)
        await peer.reported(Stopped)
        assert peer.kinds() == ["warned", "stopped"]
