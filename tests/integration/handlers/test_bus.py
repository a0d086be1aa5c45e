"""The bus on a real log: outcomes, repeats, conflicts, batches and who may see what."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from psycopg import Connection, Cursor, connect
from psycopg.rows import DictRow

from command_api.domain import agent
from command_api.domain.errors import Conflict, NotFound, Refused
from command_api.eventlog.errors import EventTooLarge, LogUnavailable, VersionConflict
from command_api.eventlog.log import Append, EventLog
from command_api.eventlog.mapper import LoggedEvent
from command_api.handlers.base import (
    Changes,
    Context,
    Foreseen,
    Idempotency,
    Loaded,
    StreamEvents,
    Streams,
)
from command_api.handlers.bus import CommandBus, Outcome
from command_api.handlers.registry import HANDLERS
from command_api.handlers.streams import PAGE_EVENTS
from schemas.commands import Command
from schemas.commands.agent import EnrollAgent, MarkAgentLost, MarkAgentOnline
from schemas.commands.identity import RecordLogin, SignUp
from schemas.envelope import Metadata
from schemas.events.agent import AgentEnrolled, AgentLost, AgentOnline, EnrolmentTokenIssued
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings
from tests.integration.eventlog.cut_connection import CuttingProxy

ORGANIZATION = new_id(Prefix.ORGANIZATION)
WORKSPACE = new_id(Prefix.WORKSPACE)
TOKEN = EnrolmentTokenIssued(expires_at=datetime(2030, 1, 2, tzinfo=UTC))
NOON = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def log(database: PostgresSettings) -> Iterator[EventLog]:
    with EventLog.open(database) as log:
        yield log


@pytest.fixture
async def bus(log: EventLog) -> AsyncIterator[CommandBus]:
    async with CommandBus(log, HANDLERS, clock=lambda: NOON) as bus:
        yield bus


def person(key: str | None = None, hmac: bytes = b"one", organization_id: str = ORGANIZATION) -> Context:
    actor = "usr_" + "a" * 32
    return Context(
        actor=actor,
        organization_id=organization_id,
        workspace_id=WORKSPACE,
        request_id="req_1",
        correlation_id="req_1",
        causation_id="cmd_1",
        traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
        idempotency=None if key is None else Idempotency(actor, key, hmac),
    )


def enroll(agent_id: str | None = None, name: str = "node") -> EnrollAgent:
    return EnrollAgent(agent_id=agent_id or new_id(Prefix.AGENT), name=name, pool="default")


def online(agent_id: str) -> MarkAgentOnline:
    return MarkAgentOnline(agent_id=agent_id)


def kinds(log: EventLog) -> list[str]:
    return [raw.type.removeprefix("kinora.") for raw in log.read_all(0, 1000)]


async def test_a_command_becomes_events_with_metadata(bus: CommandBus, log: EventLog) -> None:
    command = enroll()
    outcome = await bus.execute(command, person())
    assert (outcome.position, outcome.replayed) == (1, False)
    (recorded,) = log.read_stream(command.agent_id)
    assert outcome.events == (recorded,)
    assert recorded.event == AgentEnrolled(name="node", pool="default")
    m = recorded.metadata
    assert (m.organization_id, m.workspace_id, m.recorded_at) == (ORGANIZATION, WORKSPACE, NOON)
    assert (m.actor, m.correlation_id, m.causation_id) == ("usr_" + "a" * 32, "req_1", "cmd_1")
    assert m.traceparent == person().traceparent


async def test_a_decision_for_nothing_answers_with_the_head(bus: CommandBus, log: EventLog) -> None:
    command = enroll()
    await bus.execute(command, person())
    await bus.execute(enroll(), person())
    outcome = await bus.execute(command, person())
    assert outcome == Outcome(2, (), replayed=False)


async def test_a_refusal_reaches_the_caller_and_stores_nothing(bus: CommandBus, log: EventLog) -> None:
    command = enroll()
    await bus.execute(command, person())
    with pytest.raises(Conflict, match="use a new id"):
        await bus.execute(command.model_copy(update={"name": "other"}), person("key"))
    assert log.head() == 1
    assert log.find_command(person().actor, "key") is None


# ---- idempotency --------------------------------------------------------------------------------


async def test_a_repeat_gets_the_first_outcome(bus: CommandBus, log: EventLog) -> None:
    command = enroll()
    first = await bus.execute(command, person("key"))
    await bus.execute(enroll(), person())
    again = await bus.execute(enroll(), person("key"))
    assert again == replace(first, replayed=True)
    assert log.head() == 2


async def test_the_same_key_on_another_request_is_a_conflict(bus: CommandBus, log: EventLog) -> None:
    await bus.execute(enroll(), person("key"))
    with pytest.raises(Conflict) as refused:
        await bus.execute(enroll(), person("key", hmac=b"two"))
    assert refused.value.code == "idempotency_key_reused"
    assert log.head() == 1


async def test_a_repeat_of_a_decision_for_nothing_stays_nothing(bus: CommandBus, log: EventLog) -> None:
    command = enroll()
    await bus.execute(command, person())
    await bus.execute(online(command.agent_id), person())
    nothing = await bus.execute(online(command.agent_id), person("key"))
    await bus.execute(MarkAgentLost(agent_id=command.agent_id, reason="shut_down"), person())
    again = await bus.execute(online(command.agent_id), person("key"))
    assert again == replace(nothing, replayed=True)
    assert log.head() == 3


async def test_a_repeat_that_arrives_together_with_the_first_is_one_command(
    bus: CommandBus, log: EventLog
) -> None:
    outcomes = await asyncio.gather(*(bus.execute(enroll(), person("key")) for _ in range(20)))
    assert sorted(outcome.replayed for outcome in outcomes) == [False] + [True] * 19
    assert {outcome.events for outcome in outcomes} == {outcomes[0].events}
    assert log.head() == 1


@pytest.mark.parametrize(
    "context", [person("key"), Context.system("test", organization_id="org_1", key="key")]
)
async def test_a_repeat_in_another_process_is_noticed_at_commit(
    log: EventLog, database: PostgresSettings, context: Context
) -> None:
    """Both look the key up before either has committed, so only the tables can tell."""
    command = enroll()
    looked_up = threading.Barrier(2, timeout=30)
    first_time = threading.local()

    def meet(command: EnrollAgent, context: Context, streams: Streams) -> Changes:
        if not getattr(first_time, "met", False):
            first_time.met = True
            looked_up.wait()
        return HANDLERS[EnrollAgent](command, context, streams)

    with EventLog.open(database) as other:
        async with CommandBus(log, {EnrollAgent: meet}) as one, CommandBus(other, {EnrollAgent: meet}) as two:
            outcomes = await asyncio.gather(
                one.execute(command, context), two.execute(command, replace(context, causation_id="cmd_2"))
            )
    assert sorted(outcome.replayed for outcome in outcomes) == [False, True]
    assert outcomes[0].events == outcomes[1].events
    assert log.head() == 1


@pytest.fixture
async def cut_bus(database: PostgresSettings) -> AsyncIterator[tuple[CommandBus, CuttingProxy]]:
    with (
        TemporaryDirectory(prefix="kinora-") as folder,
        CuttingProxy(database, Path(folder)) as proxy,
        EventLog.open(proxy.settings) as log,
    ):
        async with CommandBus(log, HANDLERS) as bus:
            yield bus, proxy


class GoneAfterwards(EventLog):
    """Its database goes away as soon as something was stored."""

    def append(self, appends: Sequence[Append], *, head: int | None = None) -> list[tuple[int, ...]]:
        positions = super().append(appends, head=head)
        self.close()
        return positions


async def test_what_is_stored_is_told_even_if_the_database_goes_away_then(
    bus: CommandBus, database: PostgresSettings, log: EventLog
) -> None:
    command = enroll()
    await bus.execute(command, person())
    with GoneAfterwards.open(database) as gone:
        async with CommandBus(gone, HANDLERS) as going:
            again = (online(command.agent_id), person(), ())
            first, second = await going.execute_batch([again, again])
    assert isinstance(first, Outcome)
    assert isinstance(second, Outcome)
    assert [type(one.event) for one in first.events] == [AgentOnline]
    assert (second.events, second.position) == ((), first.position)
    assert log.head() == first.position


@pytest.mark.parametrize("key", ["key", None])
async def test_a_lost_commit_reply_gets_the_first_answer(
    cut_bus: tuple[CommandBus, CuttingProxy], log: EventLog, key: str | None
) -> None:
    bus, proxy = cut_bus
    command = enroll()
    await bus.execute(command, person())
    proxy.arm()
    outcome = await bus.execute(online(command.agent_id), person(key))
    assert proxy.cuts == 1
    assert (outcome.position, outcome.replayed) == (2, False)
    assert kinds(log) == ["agent.enrolled", "agent.online"]


async def test_policies_derive_event_ids_from_their_key(bus: CommandBus, log: EventLog) -> None:
    command = enroll()
    context = Context.system("policy", organization_id=ORGANIZATION, workspace_id=WORKSPACE, key="k")
    first = await bus.execute(command, context)
    again = await bus.execute(command, Context.system("policy", key="k"))
    assert again == replace(first, replayed=True)
    other = await bus.execute(online(command.agent_id), Context.system("policy", key="l"))
    assert other.events[0].metadata.organization_id == ORGANIZATION
    assert other.events[0].metadata.event_id != first.events[0].metadata.event_id


# ---- conflicts and batches ----------------------------------------------------------------------


def intruding(log: EventLog, times: int) -> "tuple[dict[type, object], list[int]]":
    """A handler that is overtaken by another process this many times, between load and append."""
    overtaken: list[int] = []

    def handle(command: MarkAgentOnline, context: Context, streams: Streams) -> Changes:
        loaded = streams.load(command.agent_id)
        if len(overtaken) < times:
            overtaken.append(loaded.version)
            event = AgentLost(reason="shut_down") if isinstance(loaded.state, agent.Online) else AgentOnline()
            metadata = Metadata(
                event_id=new_id(Prefix.EVENT),
                recorded_at=NOON,
                organization_id=ORGANIZATION,
                actor="system:intruder",
                correlation_id="req_2",
                causation_id="req_2",
            )
            log.append([Append((LoggedEvent(command.agent_id, loaded.version + 1, metadata, event),))])
        done = AgentLost(reason="shut_down") if isinstance(loaded.state, agent.Online) else AgentOnline()
        return [StreamEvents(command.agent_id, loaded.version, [done])]

    return {**HANDLERS, MarkAgentOnline: handle}, overtaken


async def test_a_version_clash_is_decided_again(log: EventLog) -> None:
    handlers, overtaken = intruding(log, times=3)
    async with CommandBus(log, handlers) as bus:
        command = enroll()
        await bus.execute(command, person())
        outcome = await bus.execute(online(command.agent_id), person())
    assert overtaken == [1, 2, 3]
    assert outcome.events[0].version == 5


async def test_after_three_repeats_a_version_clash_is_given_back(log: EventLog) -> None:
    handlers, overtaken = intruding(log, times=99)
    async with CommandBus(log, handlers) as bus:
        command = enroll()
        await bus.execute(command, person())
        with pytest.raises(VersionConflict):
            await bus.execute(online(command.agent_id), person())
    assert 4 <= len(overtaken) <= 5


async def test_waiting_commands_share_transactions(log: EventLog, database: PostgresSettings) -> None:
    entered, release = threading.Event(), threading.Event()

    class Held:
        def write(self, cursor: Cursor[DictRow]) -> None:
            entered.set()
            assert release.wait(30)

    async with CommandBus(log, HANDLERS) as bus:
        first = asyncio.create_task(bus.execute(enroll(), person(), rows=[Held()]))
        assert await asyncio.to_thread(entered.wait, 30)
        rest = [
            asyncio.create_task(bus.execute(enroll(), person(), rows=[Transaction()])) for _ in range(300)
        ]
        await asyncio.sleep(0)  # lets every task hand its command in
        Transaction.seen.clear()
        release.set()
        outcomes = await asyncio.gather(first, *rest)
    assert [outcome.position for outcome in outcomes] == list(range(1, 302))
    assert len(Transaction.seen) == 2, "300 commands, at most 256 in a transaction"


class Transaction:
    """Counts the transactions that rows were written in."""

    seen: set[int] = set()  # noqa: RUF012 - shared on purpose

    def write(self, cursor: Cursor[DictRow]) -> None:
        row = cursor.execute("SELECT pg_current_xact_id()::text::bigint AS id").fetchone()
        assert row is not None
        self.seen.add(row["id"])


async def test_commands_on_one_stream_are_decided_one_after_the_other(bus: CommandBus, log: EventLog) -> None:
    command = enroll()
    await bus.execute(command, person())
    alternating = [
        online(command.agent_id)
        if number % 2 == 0
        else MarkAgentLost(agent_id=command.agent_id, reason="shut_down")
        for number in range(20)
    ]
    outcomes = await asyncio.gather(*(bus.execute(one, person()) for one in alternating))
    assert [outcome.position for outcome in outcomes] == list(range(2, 22))
    assert [recorded.version for recorded in log.read_stream(command.agent_id)] == list(range(1, 22))


@dataclass
class Refusing:
    tries: list[int] = field(default_factory=list)

    def write(self, cursor: Cursor[DictRow]) -> None:
        self.tries.append(1)
        raise Conflict("the name is taken; choose another", code="username_taken")


async def test_one_refusing_row_does_not_touch_the_others_of_a_transaction(
    bus: CommandBus, log: EventLog
) -> None:
    row = Refusing()
    results = await asyncio.gather(
        bus.execute(enroll(), person()),
        bus.execute(enroll(), person(), rows=[row]),
        bus.execute(enroll(), person()),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [Outcome, Conflict, Outcome]
    assert row.tries
    assert kinds(log) == ["agent.enrolled"] * 2


async def test_a_batch_decides_in_order_and_commits_once(bus: CommandBus, log: EventLog) -> None:
    Transaction.seen.clear()
    command, row = enroll(), Transaction()
    answers = await bus.execute_batch(
        [
            (command, person("a"), [row]),
            (online(command.agent_id), person("b"), [row]),
            (online(command.agent_id), person("b"), [row]),
            (online(new_id(Prefix.AGENT)), person("c"), [row]),
            (MarkAgentLost(agent_id=command.agent_id, reason="shut_down"), person("d"), [row]),
        ]
    )
    first, second, repeat, refused, last = answers
    assert isinstance(refused, NotFound)
    assert isinstance(second, Outcome)
    assert repeat == replace(second, replayed=True)
    assert [getattr(answer, "position", None) for answer in (first, second, last)] == [1, 2, 3]
    assert len(Transaction.seen) == 1
    assert kinds(log) == ["agent.enrolled", "agent.online", "agent.lost"]


async def test_a_batch_that_cannot_be_committed_falls_back_to_single_commands(
    bus: CommandBus, log: EventLog
) -> None:
    Transaction.seen.clear()
    first, second, row = enroll(), enroll(), Transaction()
    answers = await bus.execute_batch(
        [
            (first, person(), [row]),
            (enroll(), person(), [Refusing()]),
            (online(first.agent_id), person(), [row]),
            (enroll(name="x" * 300_000), person(), []),
            (second, person(), [row]),
        ]
    )
    assert [type(answer) for answer in answers] == [Outcome, Conflict, Outcome, EventTooLarge, Outcome]
    assert kinds(log) == ["agent.enrolled", "agent.online", "agent.enrolled"]


async def test_an_empty_batch_is_nothing(bus: CommandBus) -> None:
    assert await bus.execute_batch([]) == []


async def test_a_bug_in_a_handler_is_the_answer_of_its_command_alone(log: EventLog) -> None:
    def broken(command: MarkAgentOnline, context: Context, streams: Streams) -> Changes:
        raise ZeroDivisionError

    async with CommandBus(log, {**HANDLERS, MarkAgentOnline: broken}) as bus:
        results = await asyncio.gather(
            bus.execute(enroll(), person()),
            bus.execute(online(new_id(Prefix.AGENT)), person()),
            bus.execute(enroll(), person()),
            return_exceptions=True,
        )
    assert [type(result) for result in results] == [Outcome, ZeroDivisionError, Outcome]


# ---- who may see what ---------------------------------------------------------------------------


async def test_a_foreign_stream_looks_like_a_missing_one(bus: CommandBus, log: EventLog) -> None:
    command = enroll()
    await bus.execute(command, person())
    stranger = person(organization_id=new_id(Prefix.ORGANIZATION))
    with pytest.raises(NotFound) as foreign:
        await bus.execute(online(command.agent_id), stranger)
    with pytest.raises(Refused):
        await bus.execute(command, stranger)
    missing_id = new_id(Prefix.AGENT)
    with pytest.raises(NotFound) as missing:
        await bus.execute(online(missing_id), stranger)
    assert (foreign.value.code, missing.value.code) == ("not_found", "not_found")
    assert log.head() == 1


async def test_another_persons_stream_is_foreign_too(bus: CommandBus) -> None:
    user, organization = new_id(Prefix.USER), new_id(Prefix.ORGANIZATION)
    signing_up = SignUp(
        user_id=user,
        organization_id=organization,
        workspace_id=new_id(Prefix.WORKSPACE),
        username_ciphertext="x",
        email_ciphertext="y",
    )
    outcome = await bus.execute(
        signing_up, replace(person(), actor=user, organization_id=None, workspace_id=None)
    )
    assert [recorded.metadata.organization_id for recorded in outcome.events] == [None] + [organization] * 3
    with pytest.raises(NotFound):
        await bus.execute(RecordLogin(user_id=user), person())
    own = await bus.execute(RecordLogin(user_id=user), replace(person(), actor=user))
    assert own.events[0].metadata.organization_id is None


async def test_parts_of_the_control_plane_act_everywhere(bus: CommandBus) -> None:
    command = enroll()
    await bus.execute(command, person())
    outcome = await bus.execute(online(command.agent_id), Context.system("leases"))
    m = outcome.events[0].metadata
    assert (m.actor, m.organization_id, m.workspace_id) == ("system:leases", ORGANIZATION, WORKSPACE)


# ---- life ---------------------------------------------------------------------------------------


async def test_load_sees_what_was_handed_in_before_it(bus: CommandBus) -> None:
    command = enroll()
    handed_in = asyncio.create_task(bus.execute(command, person()))
    await asyncio.sleep(0)
    loaded = await bus.load(command.agent_id)
    await handed_in
    assert (loaded.version, loaded.organization_id) == (1, ORGANIZATION)
    assert loaded.state.name == "node"
    empty = await bus.load(new_id(Prefix.JOB))
    assert empty.version == 0
    with pytest.raises(NotFound):
        await bus.load("nonsense")


async def test_another_process_is_seen(bus: CommandBus, database: PostgresSettings) -> None:
    command = enroll()
    await bus.execute(command, person())
    with EventLog.open(database) as other:
        async with CommandBus(other, HANDLERS) as second:
            await second.execute(online(command.agent_id), person())
    assert (await bus.load(command.agent_id)).version == 2


def lengthen(log: EventLog, agent_id: str, events: int) -> None:
    """Give a stream a history that no cache knows."""

    def logged(version: int) -> LoggedEvent:
        metadata = Metadata(
            event_id=new_id(Prefix.EVENT),
            recorded_at=NOON,
            organization_id=ORGANIZATION,
            workspace_id=WORKSPACE,
            actor=person().actor,
            correlation_id="req_1",
            causation_id="cmd_1",
        )
        event = AgentEnrolled(name="node", pool="default") if version == 1 else TOKEN
        return LoggedEvent(agent_id, version, metadata, event)

    log.append([Append(tuple(logged(version) for version in range(1, events + 1)))])


async def test_a_long_stream_is_read_in_pages_between_which_others_get_their_turn(log: EventLog) -> None:
    long, other = new_id(Prefix.AGENT), new_id(Prefix.AGENT)
    for agent_id in (long, other):
        lengthen(log, agent_id, 5 * PAGE_EVENTS + 1)
    answered: list[str] = []

    async with CommandBus(log, HANDLERS, clock=lambda: NOON) as bus:

        async def ask(name: str, *commands: Command) -> Outcome:
            for command in commands:
                outcome = await bus.execute(command, person())
                answered.append(name)
            return outcome

        async def load() -> Loaded:
            loaded = await bus.load(other)
            answered.append("loaded")
            return loaded

        outcome, loaded, *_ = await asyncio.gather(
            ask("long", online(long)), load(), ask("short", *(enroll() for _ in range(4)))
        )
    (event,) = outcome.events
    assert event.version == 5 * PAGE_EVENTS + 2
    assert loaded.version == 5 * PAGE_EVENTS + 1
    # More than one got between: each waited for one page and not for all.
    assert answered[:3] == ["short"] * 3
    assert log.read_stream(long, 5 * PAGE_EVENTS)[1].event == AgentOnline()


async def test_what_a_handler_did_not_foresee_is_read_in_pages_too(log: EventLog) -> None:
    long = new_id(Prefix.AGENT)
    lengthen(log, long, PAGE_EVENTS)
    begun: list[int] = []

    def surprised(command: MarkAgentOnline, context: Context, streams: Streams) -> Changes:
        begun.append(1)
        loaded = streams.load(command.agent_id)
        return [StreamEvents(command.agent_id, loaded.version, [TOKEN])]

    async with CommandBus(log, {**HANDLERS, MarkAgentOnline: surprised}, clock=lambda: NOON) as bus:
        outcomes = await asyncio.gather(*(bus.execute(online(long), person()) for _ in range(3)))
    assert [outcome.events[0].version for outcome in outcomes] == [PAGE_EVENTS + n for n in (1, 2, 3)]
    assert len(begun) > 3


async def test_a_handler_whose_foresight_fails_harms_nobody_else(log: EventLog) -> None:
    def foresee(command: MarkAgentOnline) -> Sequence[str]:
        raise ZeroDivisionError

    def nothing(command: MarkAgentOnline, context: Context, streams: Streams) -> Changes:
        return [StreamEvents(command.agent_id, streams.load(command.agent_id).version, [])]

    handlers = {**HANDLERS, MarkAgentOnline: Foreseen(nothing, foresee)}
    async with CommandBus(log, handlers, clock=lambda: NOON) as bus:
        await asyncio.gather(
            *(bus.execute(one, person()) for one in (online(new_id(Prefix.AGENT)), enroll()))
        )
    assert kinds(log) == ["agent.enrolled"]


async def test_closing_finishes_what_was_handed_in(log: EventLog) -> None:
    async with CommandBus(log, HANDLERS) as bus:
        tasks = [asyncio.create_task(bus.execute(enroll(), person())) for _ in range(5)]
        await asyncio.sleep(0)
    assert [(await task).position for task in tasks] == [1, 2, 3, 4, 5]
    with pytest.raises(RuntimeError, match="closed"):
        await bus.execute(enroll(), person())


async def test_a_cancelled_caller_does_not_stop_the_others(log: EventLog) -> None:
    async with CommandBus(log, HANDLERS) as bus:
        tasks = [asyncio.create_task(bus.execute(enroll(), person())) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[2], asyncio.CancelledError)
    assert all(isinstance(result, Outcome) for index, result in enumerate(results) if index != 2)


async def test_a_closed_database_is_a_typed_answer(database: PostgresSettings) -> None:
    with EventLog.open(database) as log:
        log.close()
        async with CommandBus(log, HANDLERS) as bus:
            with pytest.raises(LogUnavailable):
                await bus.execute(enroll(), person())


async def test_a_clock_that_is_set_back_changes_no_order(log: EventLog) -> None:
    """Recorded times may repeat and go back; positions and versions say what came first."""
    hours = iter([12, 12, 3, 4, 4])
    async with CommandBus(log, HANDLERS, clock=lambda: NOON.replace(hour=next(hours))) as bus:
        command = enroll()
        gone = MarkAgentLost(agent_id=command.agent_id, reason="shut_down")
        commands = (command, online(command.agent_id), gone, online(command.agent_id))
        positions = [(await bus.execute(each, person())).position for each in commands]
    story = log.read_stream(command.agent_id)
    assert positions == sorted(set(positions))
    assert [recorded.position for recorded in story] == positions
    assert [recorded.metadata.recorded_at.hour for recorded in story] == [12, 12, 3, 4]
    assert [type(recorded.event) for recorded in story] == [
        AgentEnrolled,
        AgentOnline,
        AgentLost,
        AgentOnline,
    ]


async def test_what_comes_while_a_batch_fails_is_stored_behind_it(
    log: EventLog, database: PostgresSettings
) -> None:
    """Somebody else writes the stream while the batch waits for the lock; arrival order is kept anyway."""
    async with CommandBus(log, HANDLERS, clock=lambda: NOON) as bus, asyncio.TaskGroup() as callers:
        agent_id = new_id(Prefix.AGENT)
        await bus.execute_batch([(enroll(one), person(), ()) for one in (agent_id, *new_agents(2))])
        with connect(database.conninfo()) as blocker, EventLog.open(database) as elsewhere:
            blocker.execute("LOCK TABLE kinora_events IN EXCLUSIVE MODE")
            gone_online = threading.Thread(target=lengthen_by_one, args=(elsewhere, agent_id))
            gone_online.start()
            await until(lambda: waits_for_the_log(blocker, 1))
            first = callers.create_task(bus.execute(online(agent_id), person("first")))
            await until(lambda: waits_for_the_log(blocker, 2))
            other = callers.create_task(bus.execute(enroll(), person("other")))
            blocker.rollback()
            await asyncio.to_thread(gone_online.join)
    earlier, later = await first, await other
    assert [event.version for event in earlier.events] == [3]
    assert earlier.position < later.position


def new_agents(number: int) -> list[str]:
    return [new_id(Prefix.AGENT) for _ in range(number)]


def waits_for_the_log(connection: Connection, sessions: int) -> bool:
    row = connection.execute(
        "SELECT count(*) FROM pg_locks WHERE relation = 'kinora_events'::regclass AND NOT granted"
    ).fetchone()
    return row == (sessions,)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - what it waits for happens on other threads
            await asyncio.sleep(0.002)


def lengthen_by_one(log: EventLog, agent_id: str) -> None:
    metadata = Metadata(
        event_id=new_id(Prefix.EVENT),
        recorded_at=NOON,
        organization_id=ORGANIZATION,
        workspace_id=WORKSPACE,
        actor=person().actor,
        correlation_id="req_1",
        causation_id="cmd_1",
    )
    log.append([Append((LoggedEvent(agent_id, 2, metadata, TOKEN),))])
