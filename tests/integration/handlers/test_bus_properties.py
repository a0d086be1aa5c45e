"""Whatever callers, processes and lost replies do: one outcome per caller, one carrying-out per key."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from command_api.domain.errors import Refused
from command_api.eventlog.errors import VersionConflict
from command_api.eventlog.log import EventLog
from command_api.handlers.base import Context
from command_api.handlers.bus import CommandBus, Outcome
from command_api.handlers.registry import HANDLERS
from schemas.commands import Command
from schemas.commands.agent import EnrollAgent, MarkAgentLost, MarkAgentOnline
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings
from tests.integration.eventlog.cut_connection import CuttingProxy

ORGANIZATION, WORKSPACE = new_id(Prefix.ORGANIZATION), new_id(Prefix.WORKSPACE)

CALLS = st.lists(
    st.tuples(
        st.integers(0, 1),  # the process
        st.integers(0, 2),  # the agent
        st.sampled_from(["enroll", "online", "lost"]),
        st.integers(0, 4),  # the key's number: some calls are repeats, some of them in the other process
        st.booleans(),  # a COMMIT reply is lost about now
    ),
    min_size=1,
    max_size=12,
)


@pytest.fixture
def logs(database: PostgresSettings) -> Iterator[tuple[EventLog, EventLog, CuttingProxy]]:
    # Not tmp_path: the path of a Unix socket has a limit of about 100 bytes.
    with (
        TemporaryDirectory(prefix="kinora-") as folder,
        CuttingProxy(database, Path(folder)) as proxy,
        EventLog.open(database) as straight,
        EventLog.open(proxy.settings) as cut,
    ):
        yield straight, cut, proxy


def command(kind: str, agent_id: str) -> Command:
    match kind:
        case "enroll":
            return EnrollAgent(agent_id=agent_id, name="node", pool="default")
        case "online":
            return MarkAgentOnline(agent_id=agent_id)
        case _:
            return MarkAgentLost(agent_id=agent_id, reason="lease_expired")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS)
def test_each_caller_one_outcome_and_each_key_one_carrying_out(
    logs: tuple[EventLog, EventLog, CuttingProxy], calls: list[tuple[int, int, str, int, bool]]
) -> None:
    straight, cut, proxy = logs
    before, story = straight.head(), new_id(Prefix.REQUEST)
    agents = [new_id(Prefix.AGENT) for _ in range(3)]

    async def call(bus: CommandBus, agent: int, kind: str, key: int) -> tuple[str, Outcome | Exception]:
        name = f"{story} {kind} {agent} {key}"
        context = Context.system(
            "test", organization_id=ORGANIZATION, workspace_id=WORKSPACE, correlation_id=story, key=name
        )
        try:
            return name, await bus.execute(command(kind, agents[agent]), context)
        except (Refused, VersionConflict) as error:
            return name, error

    async def all_calls() -> list[tuple[str, Outcome | Exception]]:
        async with CommandBus(straight, HANDLERS) as one, CommandBus(cut, HANDLERS) as other:
            tasks = []
            for process, agent, kind, key, lost in calls:
                if lost:
                    proxy.arm()
                tasks.append(asyncio.create_task(call((one, other)[process], agent, kind, key)))
                await asyncio.sleep(0)
            return await asyncio.gather(*tasks)

    answers = asyncio.run(all_calls())
    assert len(answers) == len(calls)
    stored = [raw.recorded() for raw in straight.read_all(before, 1000)]
    done = sorted(
        ((name, answer) for name, answer in answers if isinstance(answer, Outcome)), key=lambda one: one[0]
    )
    told = []
    for name, group in groupby(done, key=lambda one: one[0]):
        outcomes = [outcome for _, outcome in group]
        # All callers with the key were told the same, and one of them at most that it was the first.
        assert len({replace(outcome, replayed=True).position for outcome in outcomes}) == 1
        assert all(outcome.events == outcomes[0].events for outcome in outcomes)
        assert sum(not outcome.replayed for outcome in outcomes) <= 1
        row = straight.find_command("system:test", name)
        assert row is not None
        assert (row.position, row.event_count) == (outcomes[0].position, len(outcomes[0].events))
        told += outcomes[0].events
    # Everything that was stored was told to somebody, exactly once, and nothing else was told.
    assert sorted(told, key=lambda recorded: recorded.position) == stored
    by_stream: dict[str, list[int]] = {}
    for recorded in stored:
        by_stream.setdefault(recorded.stream_id, []).append(recorded.version)
    assert all(versions == list(range(1, len(versions) + 1)) for versions in by_stream.values())
