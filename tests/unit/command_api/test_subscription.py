"""Whatever happens in between, a subscription sends every event of its own once and in order."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from command_api.feed.conflation import Conflation
from command_api.feed.subscription import PAGE, STRIDE, Selection, Subscription
from projections.reader import LogRow
from projections.tail import LogTail

MINE, THEIRS = "org_1", "org_2"
PROGRESS, OTHER = "kinora.job.progressed", "kinora.job.queued"


def row(position: int, organization_id: str = MINE, stream: str = "job_1", kind: str = OTHER) -> LogRow:
    return LogRow(
        position, stream, 1, kind, f"evt_{position}", organization_id, None, b"{" + b"x" * 99 + b"}"
    )


@dataclass
class Log:
    """A log in memory, with gaps between positions, that answers pages in its own time."""

    rows: list[LogRow] = field(default_factory=list)
    page_most: int = 500
    asked: list[tuple[int, int]] = field(default_factory=list)
    """(after, limit) of every page of an organization."""

    def append(self, position: int, organization_id: str, stream: str, kind: str) -> None:
        self.rows.append(row(position, organization_id, stream, kind))

    async def head(self) -> int:
        await asyncio.sleep(0)
        return self.rows[-1].position if self.rows else 0

    async def page(
        self,
        after: int,
        limit: int,
        types: Sequence[str] | None = None,
        organization_id: str | None = None,
        stream_id: str | None = None,
        *,
        max_bytes: int | None = None,
    ) -> list[LogRow]:
        await asyncio.sleep(0)
        if organization_id is not None:
            self.asked.append((after, limit))
        found = [
            each
            for each in self.rows
            if each.position > after
            and (types is None or each.type in types)
            and organization_id in (None, each.organization_id)
            and stream_id in (None, each.stream_id)
        ]
        await asyncio.sleep(0)
        # The tail takes a short page for the end; whoever catches up takes only an empty one for it.
        return found[: limit if organization_id is None else min(limit, self.page_most)]


@dataclass
class Client:
    """Takes frames while its gate is open."""

    got: list[int] = field(default_factory=list)
    caught_up_at: list[int] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def events(self, sub: str, rows: Sequence[LogRow]) -> None:
        for each in rows:
            await self.gate.wait()
            self.got.append(each.position)

    async def caught_up(self, sub: str, position: int) -> None:
        await self.gate.wait()
        self.caught_up_at.append(position)

    async def reset(self, sub: str, reason: str) -> None:
        self.resets.append(reason)


class Loop(asyncio.SelectorEventLoop):
    """Time passes only when everybody waits, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        waiting = [timer for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        if not self._ready and waiting:  # type: ignore[attr-defined]
            self._now = max(self._now, min(timer.when() for timer in waiting))
        super()._run_once()  # type: ignore[misc]


def run(story: Any) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(story)


ACT = st.one_of(
    st.tuples(
        st.just("append"),
        st.sampled_from([MINE, MINE, THEIRS]),
        st.sampled_from(["job_1", "job_2"]),
        st.sampled_from([PROGRESS, OTHER]),
        st.integers(1, 3),
    ),
    st.tuples(st.just("look")),
    st.tuples(st.just("stall")),
    st.tuples(st.just("take")),
    st.tuples(st.just("turns"), st.integers(1, 12)),
    st.tuples(st.just("drop")),
)


@dataclass
class World:
    """One log, one tail, one client that comes back from where it was."""

    selection: Selection
    conflated: bool
    log: Log
    tail: LogTail
    client: Client = field(default_factory=Client)
    task: asyncio.Task[None] | None = None
    position: int = 0

    async def connect(self) -> None:
        self.client.gate.set()
        last = self.client.got[-1] if self.client.got else 0
        subscription = Subscription(
            "s", self.selection, last, self.log, self.tail, await self.log.head(), self.conflated
        )
        self.task = asyncio.create_task(subscription.run(self.client))

    async def drop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])

    async def act(self, act: tuple[Any, ...]) -> None:
        match act:
            case ("append", organization_id, stream, kind, step):
                self.position += step
                self.log.append(self.position, organization_id, stream, kind)
            case ("look",):
                await self.tail.look(self.log)
            case ("stall",):
                self.client.gate.clear()
            case ("take",):
                self.client.gate.set()
            case ("turns", count):
                for _ in range(count):
                    await asyncio.sleep(0)
            case ("drop",):
                await self.drop()
                await self.connect()

    async def settle(self) -> None:
        self.client.gate.set()
        await self.tail.look(self.log)
        await asyncio.sleep(60)

    def expected(self) -> list[LogRow]:
        return [each for each in self.log.rows if self.selection.admits(each)]


SELECTIONS = st.builds(
    Selection,
    organization_id=st.just(MINE),
    types=st.sampled_from([None, frozenset({OTHER})]),
    stream_id=st.sampled_from([None, "job_1"]),
)
WORLDS = {
    "acts": st.lists(ACT, max_size=60),
    "selection": SELECTIONS,
    "kept": st.sampled_from([150, 400, 2**20]),
    "page_most": st.sampled_from([1, 3, 500]),
}


async def live(
    acts: list[tuple[Any, ...]], selection: Selection, kept: int, page_most: int, conflated: bool
) -> World:
    world = World(selection, conflated, Log(page_most=page_most), LogTail("", keep_bytes=kept))
    await world.connect()
    for act in acts:
        await world.act(act)
    await world.settle()
    await world.drop()
    return world


@settings(max_examples=300, deadline=None)
@given(**WORLDS)
def test_every_event_once_and_in_order(
    acts: list[tuple[Any, ...]], selection: Selection, kept: int, page_most: int
) -> None:
    async def story() -> None:
        world = await live(acts, selection, kept, page_most, conflated=False)
        assert world.client.got == [each.position for each in world.expected()]
        assert world.client.resets == []
        assert world.client.caught_up_at == sorted(world.client.caught_up_at)

    run(story())


@settings(max_examples=200, deadline=None)
@given(**WORLDS)
def test_conflated_it_ends_with_the_newest_and_drops_no_other(
    acts: list[tuple[Any, ...]], selection: Selection, kept: int, page_most: int
) -> None:
    async def story() -> None:
        world = await live(acts, selection, kept, page_most, conflated=True)
        got = world.client.got
        assert got == sorted(set(got))
        must = {each.position for each in world.expected() if each.type != PROGRESS}
        newest = {(each.stream_id, each.type): each.position for each in world.expected()}
        assert must | set(newest.values()) <= set(got) <= {each.position for each in world.expected()}

    run(story())


def test_conflated_at_most_ten_times_a_second() -> None:
    async def story() -> None:
        log, tail, client = Log(), LogTail("", keep_bytes=2**20), Client()
        world = World(Selection(MINE), True, log, tail, client)
        await tail.look(log)
        await world.connect()
        loop = asyncio.get_running_loop()
        began = loop.time()
        for position in range(1, 1001):
            log.append(position, MINE, "job_1", PROGRESS)
            await tail.look(log)
            await asyncio.sleep(0.002)
        await asyncio.sleep(1)
        assert client.got[0] == 1, "the first one need not wait"
        assert client.got[-1] == 1000
        assert 15 <= len(client.got) <= (loop.time() - began) * 10
        await world.drop()

    run(story())


def test_what_a_slow_client_does_not_take_is_forgotten_and_read_again() -> None:
    async def story() -> None:
        log, tail, client = Log(), LogTail("", keep_bytes=0), Client()
        for position in range(1, 1001):
            log.append(position, MINE, "job_1", OTHER)
        await tail.look(log)
        client.gate.clear()
        task = asyncio.create_task(Subscription("s", Selection(MINE), 0, log, tail, 1000).run(client))
        await asyncio.sleep(1)
        assert log.asked == [(0, PAGE)]
        client.gate.set()
        await asyncio.sleep(1)
        assert log.asked[1:4] == [(STRIDE, STRIDE), (2 * STRIDE, 2 * STRIDE), (4 * STRIDE, 4 * STRIDE)]
        assert client.got == list(range(1, 1001))
        task.cancel()
        await asyncio.wait([task])

    run(story())


def test_a_log_that_goes_back_is_said() -> None:
    async def story() -> None:
        log, tail, client = Log(), LogTail("", keep_bytes=2**20), Client()
        for position in range(1, 11):
            log.append(position, MINE, "job_1", OTHER)
        await tail.look(log)
        world = World(Selection(MINE), False, log, tail, client)
        await world.connect()
        await asyncio.sleep(1)
        del log.rows[5:]
        await tail.look(log)
        await asyncio.sleep(1)
        assert (client.got, client.resets) == (list(range(1, 11)), ["log_restored"])
        assert world.task is not None
        assert world.task.done()

    run(story())


def test_only_those_who_are_interested_are_woken() -> None:
    async def story() -> None:
        log, tail = Log(), LogTail("", keep_bytes=2**20)
        await tail.look(log)
        clients = [Client() for _ in range(3)]
        selections = [Selection(MINE), Selection(MINE, stream_id="job_1"), Selection(THEIRS)]
        for client in clients:
            client.gate.set()
        subscriptions = [Subscription("s", selection, 0, log, tail, 0) for selection in selections]
        tasks = [
            asyncio.create_task(subscription.run(client))
            for subscription, client in zip(subscriptions, clients, strict=True)
        ]
        await asyncio.sleep(1)
        for position, stream in zip(range(1, 5), itertools.cycle(["job_2", "job_1"])):
            log.append(position, MINE, stream, OTHER)
            await tail.look(log)
            await asyncio.sleep(1)
        assert [client.got for client in clients] == [[1, 2, 3, 4], [2, 4], []]
        # Those who sleep are no further behind than those who were woken.
        assert [subscription.progress for subscription in subscriptions] == [4, 4, 4]
        assert subscriptions[2].position == 0
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    run(story())


def test_conflation_keeps_the_order_of_the_log() -> None:
    collected = Conflation()
    collected.add([row(1, kind=PROGRESS), row(2), row(3, stream="job_2", kind=PROGRESS)])
    collected.add([row(4, kind=PROGRESS), row(5)])
    assert [each.position for each in collected.take()] == [2, 3, 4, 5]
    assert collected.take() == []
    assert not collected.full
