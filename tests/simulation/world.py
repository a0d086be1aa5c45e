"""An installation in miniature: two APIs, two orchestrators, projections, agents and people, all of our code.

`World.run` sends it operations and faults, lets it come to rest, and leaves a `History` to be judged.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, TypeVar

from nats.errors import Error as NatsError
from nats.js.errors import APIError

from command_api.domain.errors import Refused
from command_api.eventlog.errors import EventLogError, LogTooNew, LogUnavailable, VersionConflict
from command_api.eventlog.log import EventLog
from command_api.eventlog.mapper import EnvelopeMapper, LoggedEvent
from command_api.feed.subscription import Selection, Subscription
from command_api.handlers.base import Context, Idempotency
from command_api.handlers.bus import CommandBus, Outcome
from command_api.handlers.registry import HANDLERS
from command_api.messaging import inbox as inbox_module
from command_api.messaging.activity import Activity, ActivityLost
from command_api.messaging.board import Board
from command_api.messaging.connection import UNREACHABLE
from command_api.messaging.cursors import Cursors
from command_api.messaging.epochs import Epochs
from command_api.messaging.follower import Follower
from command_api.messaging.relay import Relay
from command_api.messaging.together import run_together
from command_api.messaging.topology import Topology
from command_api.messaging.wake import LogWake
from projections import replay
from projections import run as projections_run
from projections.errors import ProjectionError
from projections.reader import LogReader, LogRow
from projections.settings import ProjectionsSettings
from projections.tail import LogTail
from schemas import work
from schemas.commands import Command
from schemas.commands.job import AdmitJob, ClaimJob, ExpireLease, RequestJob, StopJob, ValidateJob
from schemas.envelope import Metadata
from schemas.events import Event
from schemas.events.agent import AgentEnrolled
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings
from schemas.subjects import INBOX_DURABLE, REPORTS_STREAM, report_subject
from schemas.training import Hyperparameters
from tests.simulation.history import Asked, Reported, Told
from tests.simulation.jetstream import client as nats_client
from tests.simulation.jetstream import server as nats_server
from tests.simulation.ledger import Ledger, Poison
from tests.simulation.postgres import connections as pg_connections
from tests.simulation.postgres import engine as pg_engine
from tests.simulation.rebuilder import Rebuilder
from tests.simulation.scheduler import Process, SimulatedLoop
from tests.simulation.virtual import EPOCH
from tests.unit.domain import samples

T = TypeVar("T")

LOG_ID = "log_" + "5" * 32
AGENTS = tuple(samples.identifier("agt", 10 + number) for number in range(3))
MODEL = samples.identifier("mdl", 2)
SETTINGS = PostgresSettings(dbname="simulated", host="simulated", port=1, user="kinora", password="x")
POLL_SECONDS = 1.0
PATIENCE = 20.0
"""Seconds after which whoever asked asks again."""
REST_SECONDS = 240.0
"""So long may it take until everything is level, once nothing fails any more."""


class Unreachable(Exception):
    """The API process did not answer."""


@dataclass
class Api:
    """What an API process offers once it is up."""

    process: Process
    bus: CommandBus
    reader: LogReader
    tail: LogTail


@dataclass
class Job:
    """What people and agents believe of a job; they may be wrong."""

    job_id: str
    stage: str = "new"
    attempt: int = 0
    holder: str | None = None
    sent: int = 0
    """Reports of the present attempt."""


@dataclass
class Follow:
    """One client of the feed."""

    name: str
    told: Told
    position: int = 0
    api: Api | None = None
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True)
class Screen:
    """The client's end of a subscription, behind a connection that may be slow, and may break."""

    world: "World"
    api: Api
    follow: Follow
    ended: asyncio.Event

    async def _travel(self) -> None:
        random = self.world.random
        slow = random.random() < 0.03
        await asyncio.sleep(random.random() * 2.0 if slow else self.world.nats_network.travel())
        if self.follow.api is not self.api or self.ended.is_set():
            raise Unreachable

    async def events(self, _sub: str, rows: Sequence[LogRow]) -> None:
        await self._travel()
        for row in rows:
            self.follow.told.positions.append(row.position)
            self.follow.position = row.position

    async def caught_up(self, _sub: str, position: int) -> None:
        await self._travel()
        self.follow.position = max(self.follow.position, position)

    async def reset(self, _sub: str, reason: str) -> None:
        self.follow.told.resets.append(reason)


class World:
    """Everything of one seed."""

    def __init__(self, loop: SimulatedLoop, operations: int, may_fail: Sequence[str] = ()) -> None:
        self.loop = loop
        self.may_fail = may_fail
        """Names of the faults to choose from; all when empty."""
        self.random = loop.random
        self.operations = operations
        self.postgres = pg_engine.Server(loop)
        self.pg_network = pg_connections.Network(loop, self.postgres)
        self.nats = nats_server.Server(loop)
        self.nats_network = nats_client.Network(loop, self.nats)
        self.poison = Poison()
        self.view_version = 1
        """Of the view's code that the projections process starts with."""
        self.processes: dict[str, Process] = {}
        self.apis: dict[str, Api] = {}
        self.host = Process("host")
        self.jobs: list[Job] = []
        self.asked: list[Asked] = []
        self.reported: list[Reported] = []
        self.follows = [Follow(f"client-{number}", Told(f"client-{number}")) for number in range(3)]
        self.in_flight = 0
        self._room = asyncio.Semaphore(16)
        self.calm = False
        """Nothing fails any more, and everybody asks until answered."""
        self.faults: list[str] = []
        self.done = 0
        self._agent_clients: dict[str, nats_client.Client] = {}

    # ---- processes ------------------------------------------------------------------------------

    async def start(self) -> None:
        self._lay_the_log()
        mains: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "api-1": lambda: self._api("api-1"),
            "api-2": lambda: self._api("api-2"),
            "orchestrator-1": self._orchestrator,
            "orchestrator-2": self._orchestrator,
            "projections": self._projections,
        }
        for name, main in mains.items():
            self.loop.spawn(self.host, lambda name=name, main=main: self._supervise(name, main))
        for agent_id in AGENTS:
            process = self.processes[agent_id] = Process(agent_id)
            self.loop.spawn(process, lambda agent_id=agent_id: self._agent(agent_id))
        for follow in self.follows:
            self.loop.spawn(self.host, lambda follow=follow: self._follow(follow))

    def _lay_the_log(self) -> None:
        """What was there before: an organization's inputs and agents."""
        at = datetime.fromtimestamp(EPOCH, UTC)
        histories: dict[str, tuple[Event, ...]] = {
            samples.DATASET: samples.DATASET_READY,
            MODEL: samples.MODEL_READY,
            **{agent_id: (AgentEnrolled(name="node", pool="default"),) for agent_id in AGENTS},
        }
        session = pg_engine.Session(self.postgres)
        session.begin()
        assert session.transaction is not None
        mapper = EnvelopeMapper()
        for stream_id, events in histories.items():
            for version, event in enumerate(events, start=1):
                metadata = Metadata(
                    event_id=new_id(Prefix.EVENT),
                    recorded_at=at,
                    organization_id=samples.ORGANIZATION,
                    workspace_id=samples.WORKSPACE,
                    actor=samples.USER,
                    correlation_id="setup",
                    causation_id="setup",
                )
                stored = mapper.to_stored_event(LoggedEvent(stream_id, version, metadata, event))
                row = {
                    "notification_id": self.postgres.next_value("kinora_events_notification_id_seq"),
                    "originator_id": stored.originator_id,
                    "originator_version": version,
                    "topic": stored.topic,
                    "state": stored.state,
                    "stream_id": stream_id,
                    **metadata.model_dump(exclude={"traceparent"}),
                }
                key = (stored.originator_id, version)
                session.transaction.put("kinora_events", key, row)
        session.transaction.put("kinora_log", True, {"log_id": LOG_ID})
        session.commit()
        session.end()
        Rebuilder(self).lock()

    async def _supervise(self, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            process = self.processes[name] = Process(name)
            task = self.loop.spawn(process, main)
            await asyncio.wait({task})
            if process.alive:
                error = None if task.cancelled() else task.exception()
                self.loop.note(f"{name} ended: {error!r}")
                if isinstance(error, AssertionError | TypeError | AttributeError | NameError):
                    self.loop.failure = error
                self.loop.kill(process)
            await asyncio.sleep(0.5 + self.random.random())

    def _clock(self) -> datetime:
        return datetime.fromtimestamp(EPOCH + self.loop.time(), UTC)

    async def _api(self, name: str) -> None:
        process = self.processes[name]
        async with AsyncExitStack() as stack:
            log = await asyncio.to_thread(lambda: EventLog.open(SETTINGS, create_tables=False))
            bus = await stack.enter_async_context(CommandBus(log, HANDLERS, clock=self._clock))
            # One API serves followers from memory, the other one from pages of the log.
            kept = 16 * 1024 if name == "api-1" else 0
            tail = await stack.enter_async_context(LogTail("", poll_seconds=POLL_SECONDS, keep_bytes=kept))
            pool: Any = pg_connections.AsyncPool(self.pg_network)
            self.apis[name] = Api(process, bus, LogReader(pool), tail)
            process.on_death.append(lambda: self.apis.pop(name, None))
            self.loop.note(f"{name} is up")
            await asyncio.Event().wait()

    async def _orchestrator(self) -> None:
        while True:
            try:
                async with Activity("") as activity:
                    await activity.acquire()
                    await run_together(activity.watch(), self._orchestrate())
            except (ActivityLost, LogUnavailable, LogTooNew, pg_connections.psycopg.OperationalError) as lost:
                self.loop.note(f"orchestrator starts over: {lost}")
                await asyncio.sleep(1.0)

    async def _orchestrate(self) -> None:
        async with AsyncExitStack() as stack:
            log = await asyncio.to_thread(lambda: EventLog.open(SETTINGS, create_tables=False))
            stack.push_async_callback(asyncio.to_thread, log.close)
            bus = await stack.enter_async_context(CommandBus(log, HANDLERS, clock=self._clock))
            cursors = Cursors("")
            wake = LogWake("", poll_seconds=POLL_SECONDS)
            follower = Follower(log, Board(), wake.waiter())
            await follower.catch_up()
            relays: list[Relay] = []

            async def reconnected() -> None:
                for each in relays:
                    each.check_soon()

            client = nats_client.Client(self.nats_network, reconnected=reconnected)
            stack.push_async_callback(client.close)
            topology = Topology(client.jetstream(), 2**30)
            while True:
                try:
                    await topology.ensure_streams()
                    break
                except (*UNREACHABLE, APIError):
                    await asyncio.sleep(1.0)
            any_client: Any = client
            relays.append(Relay(any_client, topology, log, Epochs(""), wake.waiter()))
            nothing_stored: Any = SimpleNamespace()
            inbox = inbox_module.Inbox(topology.js, follower, bus, nothing_stored, cursors)
            stack.push_async_callback(inbox.finish)
            self.loop.note("an orchestrator is active")
            await run_together(
                wake.run(), follower.run(), relays[0].run(), inbox.run(), self._pull(client, inbox)
            )

    async def _pull(self, client: nats_client.Client, inbox: inbox_module.Inbox) -> None:
        """The reports' subscription: one by one, in order, as the broker is set to do it."""
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{REPORTS_STREAM}.{INBOX_DURABLE}"
        body = json.dumps({"batch": 1, "expires": 2_000_000_000}).encode()
        while True:
            try:
                message = await client.request(subject, body, timeout=3.0)
            except (*UNREACHABLE, NatsError):
                await asyncio.sleep(0.2)
                continue
            if message.reply:
                await inbox.deliver(message)

    async def _projections(self) -> None:
        await projections_run.run(
            ProjectionsSettings(postgres=SETTINGS, page_size=7, poll_seconds=POLL_SECONDS),
            asyncio.Event(),
            ready=lambda: self.loop.note("projections are active"),
            views=(Ledger(self.poison, self.view_version),),
        )

    # ---- people ---------------------------------------------------------------------------------

    async def _call(self, api: Api, body: Callable[[], Awaitable[T]]) -> T:
        """Ask an API process over a network that may lose the question, and the answer."""
        answer: asyncio.Future[T] = self.loop.create_future()

        def lost() -> None:
            if not answer.done():
                answer.set_exception(Unreachable())
                answer.exception()

        async def serve() -> None:
            try:
                found = await body()
            except asyncio.CancelledError:
                return
            except Exception as error:
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(found)

        await asyncio.sleep(self.nats_network.travel())
        if not api.process.alive:
            raise Unreachable
        api.process.on_death.append(lost)
        self.loop.spawn(api.process, serve)
        try:
            async with asyncio.timeout(PATIENCE):
                found = await answer
        except TimeoutError:
            raise Unreachable from None
        finally:
            if lost in api.process.on_death:
                api.process.on_death.remove(lost)
        await asyncio.sleep(self.nats_network.travel())
        if not self.calm and self.random.random() < 0.03:
            raise Unreachable  # the answer got lost
        return found

    def _some_api(self) -> Api | None:
        names = sorted(self.apis)
        return self.apis[self.random.choice(names)] if names else None

    async def ask(self, asked: Asked) -> Outcome | None:
        """Ask until there is an answer that settles it."""
        while True:
            api = self._some_api()
            if api is None:
                await asyncio.sleep(0.2)
                continue
            began = self.loop.time()
            try:
                outcome = await self._call(api, lambda api=api: api.bus.execute(asked.command, asked.context))
            except Refused as refused:
                asked.refusals.append(refused.code)
                asked.refused_at.append(began)
                return None
            except Unreachable:
                asked.unanswered += 1
            except VersionConflict:
                asked.conflicts += 1
            except EventLogError as error:
                if not error.retryable:
                    asked.errors.append(repr(error))
                    return None
                asked.unanswered += 1
            except Exception as error:
                asked.errors.append(repr(error))
                return None
            else:
                asked.answered_at.append(self.loop.time())
                asked.answers.append(
                    (
                        outcome.position,
                        tuple(one.metadata.event_id for one in outcome.events),
                        outcome.replayed,
                    )
                )
                return outcome
            await asyncio.sleep(0.1 + self.random.random())

    def question(self, command: Command, *, key: str | None = None, system: bool = False) -> Asked:
        """A command and whoever asks for it, under an idempotency key of its own."""
        key = key or new_id(Prefix.COMMAND)
        if system:
            context = Context.system(
                "simulation",
                organization_id=samples.ORGANIZATION,
                workspace_id=samples.WORKSPACE,
                key=key,
            )
        else:
            request_id = new_id(Prefix.REQUEST)
            context = Context(
                actor=samples.USER,
                organization_id=samples.ORGANIZATION,
                workspace_id=samples.WORKSPACE,
                request_id=request_id,
                correlation_id=request_id,
                causation_id=request_id,
                idempotency=Idempotency(samples.USER, key, command.TYPE.encode()),
            )
        asked = Asked(command, context)
        self.asked.append(asked)
        return asked

    # ---- agents ---------------------------------------------------------------------------------

    async def _agent(self, agent_id: str) -> None:
        self._agent_clients[agent_id] = nats_client.Client(self.nats_network)
        await asyncio.Event().wait()

    async def report(self, reported: Reported) -> None:
        """Publish a report until JetStream has it, as agents do."""
        body = work.Report(
            item_id=reported.job_id,
            attempt=reported.attempt,
            sequence=reported.sequence,
            occurred_at=self._clock(),
            body=reported.body,
        ).model_dump_json()
        js = self._agent_clients[reported.agent_id].jetstream()
        subject = report_subject(samples.ORGANIZATION, reported.agent_id, reported.job_id)
        message_id = f"{reported.job_id}-{reported.attempt}-{reported.sequence}"
        while True:
            try:
                await js.publish(
                    subject,
                    body.encode(),
                    stream=REPORTS_STREAM,
                    headers={"Nats-Msg-Id": message_id},
                    timeout=5.0,
                )
            except (*UNREACHABLE, APIError):
                await asyncio.sleep(0.2 + self.random.random())
            else:
                reported.acknowledged_at = reported.acknowledged_at or self.loop.time()
                return

    # ---- followers of the feed ------------------------------------------------------------------

    async def _follow(self, follow: Follow) -> None:
        """Subscribe behind the last position, for ever, over connections that break."""
        while True:
            api = self._some_api()
            if api is None:
                await asyncio.sleep(0.3)
                continue
            ended = asyncio.Event()
            follow.api = api
            try:
                await self._call(api, lambda api=api, ended=ended: self._subscribe(api, follow, ended))
                await ended.wait()
            except (Unreachable, pg_connections.psycopg.Error):
                ended.set()
            await asyncio.sleep(0.05 + 0.5 * self.random.random())

    async def _subscribe(self, api: Api, follow: Follow, ended: asyncio.Event) -> None:
        head = await api.reader.head()
        subscription = Subscription(
            follow.name,
            Selection(samples.ORGANIZATION),
            min(follow.position, head),
            api.reader,
            api.tail,
            head,
        )

        async def run() -> None:
            try:
                await subscription.run(Screen(self, api, follow, ended))
            except Unreachable:
                pass
            except Exception as error:
                self.loop.note(f"{follow.name}: {error!r}")
            finally:
                ended.set()

        api.process.on_death.append(ended.set)
        follow.task = self.loop.create_task(run())

    # ---- operations -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Operations and faults, and then quiet until everything is level."""
        from tests.simulation.faults import FAULTS

        await self.start()
        await asyncio.sleep(3.0)
        at = sorted(self.random.sample(range(5, self.operations), k=5 + self.random.randrange(8)))
        for number in range(self.operations):
            if at and number == at[0]:
                at.pop(0)
                names = list(self.may_fail or FAULTS)
                name = self.random.choices(names, weights=[FAULTS[each][0] for each in names])[0]
                self.faults.append(name)
                self.loop.note(f"FAULT {name}")
                FAULTS[name][1](self)
            await self._room.acquire()
            self.loop.spawn(self.host, self._operate)
            self.done += 1
            await asyncio.sleep(self.random.expovariate(1 / 0.06))
            if number % 20 == 19:
                self.look()
        await self._rest()

    def look(self) -> None:
        """Where a judge looks at the stores while everything is moving."""

    async def _operate(self) -> None:
        self.in_flight += 1
        try:
            await self._one_operation()
        finally:
            self.in_flight -= 1
            self._room.release()

    async def _one_operation(self) -> None:
        open_jobs = [job for job in self.jobs if job.stage not in ("new", "over")]
        choice = self.random.random()
        if choice < 0.12 or not open_jobs:
            await self._request()
        elif choice < 0.17 and self.asked:
            await self._repeat(self.random.choice(self.asked))
        elif choice < 0.20:
            await self._stop(self.random.choice(open_jobs))
        elif choice < 0.23:
            job = self.random.choice(open_jobs)
            await self.ask(
                self.question(ExpireLease(job_id=job.job_id, attempt=max(1, job.attempt)), system=True)
            )
        elif choice < 0.26:
            await self._stale(self.random.choice(open_jobs))
        elif choice < 0.28:
            self.random.choice(self.follows).api = None  # its connection breaks at the next frame
        else:
            await self._advance(self.random.choice(open_jobs))

    async def _request(self) -> None:
        job = Job(new_id(Prefix.JOB))
        self.jobs.append(job)
        command = RequestJob(
            job_id=job.job_id,
            name="a job",
            owner_id=samples.USER,
            dataset_id=samples.DATASET,
            model_id=MODEL,
            hyperparameters=Hyperparameters(max_steps=20),
            pool="default",
            priority="normal",
            labels={},
        )
        if await self.ask(self.question(command)) is not None:
            job.stage = "requested"

    async def _repeat(self, earlier: Asked) -> None:
        """The same request once more: at any time later, by any API."""
        if earlier.settled:
            again = Asked(earlier.command, earlier.context)
            self.asked.append(again)
            await self.ask(again)

    async def _stop(self, job: Job) -> None:
        await self.ask(self.question(StopJob(job_id=job.job_id, mode="graceful", reason="enough")))

    async def _stale(self, job: Job) -> None:
        """An agent that lost its attempt does not know it yet."""
        attempt = max(1, job.attempt - 1)
        await self.ask(
            self.question(
                ClaimJob(job_id=job.job_id, agent_id=self.random.choice(AGENTS), attempt=attempt), system=True
            )
        )

    async def _advance(self, job: Job) -> None:
        match job.stage:
            case "requested":
                if await self.ask(self.question(ValidateJob(job_id=job.job_id), system=True)) is not None:
                    job.stage = "validating"
            case "validating":
                admit = AdmitJob(
                    job_id=job.job_id, total_steps=20, training_examples=16, held_out_examples=4, epochs=1.0
                )
                if await self.ask(self.question(admit, system=True)) is not None:
                    job.stage, job.attempt = "queued", max(1, job.attempt)
            case "queued":
                await self._claim(job)
            case "held":
                await self._report(job)

    async def _claim(self, job: Job) -> None:
        agent_id, attempt = self.random.choice(AGENTS), job.attempt
        claim = ClaimJob(job_id=job.job_id, agent_id=agent_id, attempt=attempt)
        outcome = await self.ask(self.question(claim, system=True))
        if outcome is not None and job.attempt == attempt and job.stage == "queued":
            job.stage, job.holder, job.sent = "held", agent_id, 0
        elif outcome is None and job.attempt == attempt and job.stage == "queued":
            job.attempt += 1
            if job.attempt >= 6:
                job.stage = "over"

    async def _report(self, job: Job) -> None:
        assert job.holder is not None
        job.sent += 1
        body: work.ReportBody
        if job.sent == 1:
            body = work.Accepted()
        elif job.sent == 2:
            body = work.Started(
                start_step=0,
                total_steps=20,
                trainable_parameters=100,
                total_parameters=1000,
                training_examples=16,
                held_out_examples=4,
                device="cpu",
            )
        elif job.sent > 4 and self.random.random() < 0.15:
            body = work.Released(reason="shutting down")
        else:
            body = work.Warned(code="noted", message=f"report {job.sent}")
        reported = Reported(job.job_id, job.attempt, job.sent, job.holder, body)
        self.reported.append(reported)
        if isinstance(body, work.Released):
            job.stage, job.attempt, job.holder = "queued", job.attempt + 1, None
        await self.report(reported)
        if self.random.random() < 0.1:  # the acknowledgement was lost, or the agent restarted
            await asyncio.sleep(self.random.random() * 3.0)
            await self.report(reported)

    # ---- rest -----------------------------------------------------------------------------------

    async def _rest(self) -> None:
        """Mend everything, and wait until nobody has anything left to do."""
        self.calm = True
        self.loop.note("calm from here on")
        self.pg_network.start_server()
        self.nats_network.start_server()
        for process in list(self.processes.values()):
            self.loop.thaw(process)
        self.poison.streams.clear()
        await self._settle()
        if self.in_flight or self.unsettled() is not None:
            return
        # The very last event comes while every listener has to find its way back.
        self.pg_network.slow_until = self.loop.time() + 2.0
        for wire in list(self.pg_network.wires):
            if wire.listening and not wire.silent and wire.process is not None:
                wire.cut(request_arrives=False)
        self.loop.spawn(self.host, self._last_operation)
        await asyncio.sleep(0.5)
        await self._settle()

    async def _last_operation(self) -> None:
        self.in_flight += 1
        await asyncio.sleep(0.3 * self.random.random())
        await self._request()
        self.in_flight -= 1

    async def _settle(self) -> None:
        replayed_at = 0.0
        # Counted rather than timed: a machine that falls asleep meanwhile has rested no longer for that.
        for _ in range(int(REST_SECONDS / 0.5)):
            await asyncio.sleep(0.5)
            if self.postgres.table("projections.parked_streams").rows and self.loop.time() > replayed_at:
                replayed_at = self.loop.time() + 5.0
                self.loop.spawn(self.host, self._replay)
            if not self.in_flight and self.unsettled() is None:
                return

    async def _replay(self) -> None:
        with suppress(pg_connections.psycopg.Error, ProjectionError):
            await replay.replay_parked("", Ledger(self.poison, self.view_version))

    def unsettled(self) -> str | None:
        """Who is behind the log; None when everything is level."""
        head = max(self.postgres.table("kinora_events").positions, default=0)  # type: ignore[attr-defined]
        stream = self.nats.streams.get("EVENTS")
        last = stream.messages.get(stream.last_sequence) if stream is not None else None
        if last is None or int(last.headers["Kinora-Position"]) != head:
            return f"EVENTS ends at {last.headers['Kinora-Position'] if last else None}, the log at {head}"
        assert stream is not None
        if stream.messages[min(stream.messages)].headers["Kinora-Previous-Position"] != "0":
            return f"EVENTS begins at sequence {min(stream.messages)}"
        reports = self.nats.streams.get("REPORTS")
        if reports is not None and reports.messages:
            return f"{len(reports.messages)} reports wait in REPORTS"
        for follow in self.follows:
            if follow.position < head:
                return f"{follow.name} is at {follow.position}, the log at {head}"
        view = self.postgres.table("projections.views").rows.get("ledger")
        if view is None or view["version"] != self.view_version or view["position"] < head:
            return f"the view is at {view['position'] if view else None}, the log at {head}"
        if self.postgres.table("projections.parked_streams").rows:
            return "streams are parked"
        return None
