"""Commands that are decided from memory: as right as if the log had been looked at, and without that look."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from command_api.eventlog.log import EventLog
from command_api.handlers.base import Context
from command_api.handlers.bus import CommandBus, Outcome
from command_api.handlers.registry import HANDLERS
from schemas.commands import Command
from schemas.commands.agent import EnrollAgent, MarkAgentLost, MarkAgentOnline, RevokeAgent
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings

ORGANIZATION, WORKSPACE = new_id(Prefix.ORGANIZATION), new_id(Prefix.WORKSPACE)


@dataclass
class Process:
    """A bus, and how often its log was looked at."""

    bus: CommandBus
    looks: list[Any] = field(default_factory=list)

    async def carry_out(self, command: Command, key: str | None = None) -> Outcome:
        context = Context.system("test", organization_id=ORGANIZATION, workspace_id=WORKSPACE, key=key)
        return await self.bus.execute(command, context)


@pytest.fixture
def logs(database: PostgresSettings) -> Iterator[tuple[EventLog, EventLog]]:
    with EventLog.open(database) as one, EventLog.open(database) as other:
        yield one, other


@pytest.fixture
async def processes(
    logs: tuple[EventLog, EventLog], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Process, Process]]:
    async with AsyncExitStack() as stack:
        made = []
        for log in logs:
            process = Process(await stack.enter_async_context(CommandBus(log, HANDLERS)))
            look_up = log.look_up

            def counted(*asked: Any, process: Process = process, look_up: Any = look_up) -> Any:
                process.looks.append(asked)
                return look_up(*asked)

            monkeypatch.setattr(log, "look_up", counted)
            made.append(process)
        yield made[0], made[1]


def types(outcome: Outcome) -> list[str]:
    return [type(recorded.event).TYPE.rsplit(".", 1)[-1] for recorded in outcome.events]


async def enrolled(process: Process) -> str:
    agent_id = new_id(Prefix.AGENT)
    await process.carry_out(EnrollAgent(agent_id=agent_id, name="node", pool="default"))
    return agent_id


async def test_what_this_process_wrote_last_is_not_looked_up(processes: tuple[Process, Process]) -> None:
    one, _ = processes
    agent_id = await enrolled(one)
    one.looks.clear()
    for _ in range(3):
        assert types(await one.carry_out(MarkAgentOnline(agent_id=agent_id), new_id(Prefix.COMMAND))) == [
            "online"
        ]
        lost = MarkAgentLost(agent_id=agent_id, reason="lease_expired")
        assert types(await one.carry_out(lost, new_id(Prefix.COMMAND))) == ["lost"]
    assert one.looks == []


async def test_what_others_wrote_meanwhile_counts(processes: tuple[Process, Process]) -> None:
    one, other = processes
    agent_id = await enrolled(one)
    await other.carry_out(MarkAgentOnline(agent_id=agent_id))
    # From memory the agent would come online here a second time.
    assert types(await one.carry_out(MarkAgentOnline(agent_id=agent_id))) == []
    lost = await other.carry_out(MarkAgentLost(agent_id=agent_id, reason="lease_expired"))
    again = await one.carry_out(MarkAgentOnline(agent_id=agent_id))
    assert types(again) == ["online"]
    assert again.position > lost.position
    assert again.events[0].version == lost.events[0].version + 1


async def test_what_memory_would_refuse_or_leave_is_asked_of_the_log(
    processes: tuple[Process, Process],
) -> None:
    one, other = processes
    agent_id = await enrolled(one)
    await one.carry_out(MarkAgentOnline(agent_id=agent_id))
    await other.carry_out(MarkAgentLost(agent_id=agent_id, reason="lease_expired"))
    one.looks.clear()
    assert types(await one.carry_out(MarkAgentOnline(agent_id=agent_id))) == ["online"]
    assert len(one.looks) == 1
    await other.carry_out(RevokeAgent(agent_id=agent_id, reason="sold"))
    with pytest.raises(Exception, match="revoked"):
        await one.carry_out(MarkAgentOnline(agent_id=agent_id))


async def test_a_key_that_another_process_used_gets_the_first_answer(
    processes: tuple[Process, Process],
) -> None:
    one, other = processes
    agent_id, key = await enrolled(one), new_id(Prefix.COMMAND)
    first = await other.carry_out(MarkAgentOnline(agent_id=agent_id), key)
    await one.carry_out(MarkAgentLost(agent_id=agent_id, reason="lease_expired"))
    # The agent is lost, so deciding anew would make an event: with the very id of the first one.
    repeat = await one.carry_out(MarkAgentOnline(agent_id=agent_id), key)
    assert (repeat.replayed, repeat.position, repeat.events) == (True, first.position, first.events)
    assert types(await one.carry_out(MarkAgentOnline(agent_id=agent_id), new_id(Prefix.COMMAND))) == [
        "online"
    ]
