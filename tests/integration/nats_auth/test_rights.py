"""Every subject and every call of the JetStream API, tried by everybody: what is not granted is refused."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import nats as nats_client
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext

from command_api.messaging.connection import connect
from command_api.messaging.topology import Topology
from command_api.nats_auth.keys import new_seed, public_key
from command_api.nats_auth.rights import Rights, reading_rights, telemetry_rights
from command_api.nats_auth.users import FreshCredentials, credentials_text, signed_subscriber
from kinora.local.servers import EmbeddedServers
from schemas import subjects
from schemas.ids import Prefix, new_id
from schemas.settings import NatsSettings, NatsUser
from tests.conftest import AgentUser

OURS, THEIRS = new_id(Prefix.ORGANIZATION), new_id(Prefix.ORGANIZATION)
AGENT, COLLEAGUE, FOREIGNER = (new_id(Prefix.AGENT) for _ in range(3))
JOB = new_id(Prefix.JOB)
STREAMS = ("EVENTS", "WORK", "REPORTS", "DEAD_LETTERS", "HEADS")
SUBSCRIPTION, OTHER_SUBSCRIPTION = new_id(Prefix.SUBSCRIPTION), new_id(Prefix.SUBSCRIPTION)
READER = subjects.subscriber_durable(OURS, SUBSCRIPTION)
OTHER_READER = subjects.subscriber_durable(THEIRS, OTHER_SUBSCRIPTION)
READER_SEED = new_seed("user")
READER_INBOX = subjects.subscriber_inbox(SUBSCRIPTION)

AGENTS = {"agent": (OURS, AGENT), "foreign agent": (THEIRS, FOREIGNER)}
WHO = (*AGENTS, "subscriber")


def own(who: str, organization_id: str, agent_id: str) -> bool:
    return AGENTS.get(who) == (organization_id, agent_id)


def of(who: str, organization_id: str) -> bool:
    return AGENTS.get(who, ("", ""))[0] == organization_id


Row = tuple[str, Callable[[str], bool]]
"""A subject, and who may use it."""


def nobody(_who: str) -> bool:
    return False


def publish_rows() -> list[Row]:
    rows: list[Row] = []
    for organization_id, agent_id in ((OURS, AGENT), (OURS, COLLEAGUE), (THEIRS, FOREIGNER), (THEIRS, AGENT)):
        mine = lambda who, o=organization_id, a=agent_id: own(who, o, a)  # noqa: E731
        rows += [(subject, mine) for subject in subjects.request_subjects(organization_id, agent_id)]
        rows.append((subjects.report_subject(organization_id, agent_id, JOB), mine))
        rows.append((subjects.control_subject(organization_id, agent_id), nobody))
        rows.append((f"{subjects.agent_inbox(agent_id)}.x", nobody))
    for organization_id in (OURS, THEIRS):
        ours = lambda who, o=organization_id: of(who, o)  # noqa: E731
        rows.append((subjects.telemetry_subject(organization_id, JOB), ours))
        rows.append((subjects.event_subject(organization_id, "ws", "kinora.job.requested"), nobody))
        for pool in ("default", "gpus"):
            rows.append((subjects.work_subject(organization_id, pool, "train", "high", JOB), nobody))
            for durable in subjects.pool_durables(organization_id, pool):
                allowed = ours if pool == "default" else nobody
                rows.append((f"$JS.API.CONSUMER.MSG.NEXT.WORK.{durable}", allowed))
                rows.append((f"$JS.ACK.WORK.{durable}.1.1.1.1.0", allowed))
                rows.append((f"$JS.API.CONSUMER.INFO.WORK.{durable}", nobody))
    for durable in (READER, OTHER_READER):
        reads = lambda who, d=durable: who == "subscriber" and d == READER  # noqa: E731
        for call in ("INFO", "MSG.NEXT"):
            rows.append((f"{subjects.SUBSCRIBER_API}.CONSUMER.{call}.EVENTS.{durable}", reads))
            rows.append((f"$JS.API.CONSUMER.{call}.EVENTS.{durable}", nobody))
        rows.append((f"$JS.ACK.EVENTS.{durable}.1.1.1.1.0", reads))
    rows += [(subject, nobody) for subject in closed_to_all()]
    return rows


def closed_to_all() -> list[str]:
    """What only the control plane may ask."""
    closed = [
        "anything",
        "kinora.dead_letters.REPORTS",
        subjects.HEADS_SUBJECT,
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.LIST",
        "$JS.API.META.LEADER.STEPDOWN",
        "$JS.API.SERVER.REMOVE",
        "$JS.API.ACCOUNT.PURGE.X",
        "$JS.API.CONSUMER.MSG.NEXT.REPORTS.inbox",
        "$JS.ACK.REPORTS.inbox.1.1.1.1.0",
        "$JS.FC.WORK.x.y",
        "$SYS.REQ.CLAIMS.UPDATE",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.USER.INFO",
        "$SRV.PING",
        "_INBOX.anybody",
        "_R_.anything",
    ]
    for stream in (*STREAMS, "NEW"):
        closed += [
            f"$JS.API.STREAM.{call}.{stream}"
            for call in ("CREATE", "UPDATE", "INFO", "DELETE", "PURGE", "MSG.GET", "MSG.DELETE", "SNAPSHOT")
        ]
        closed += [
            f"$JS.API.STREAM.{call}.{stream}" for call in ("RESTORE", "PEER.REMOVE", "LEADER.STEPDOWN")
        ]
        closed += [f"$JS.API.DIRECT.GET.{stream}", f"$JS.API.DIRECT.GET.{stream}.kinora.v1.x"]
        closed += [f"$JS.API.CONSUMER.{call}.{stream}" for call in ("CREATE", "NAMES", "LIST")]
        closed += [
            f"$JS.API.CONSUMER.{call}.{stream}.x"
            for call in ("CREATE", "DURABLE.CREATE", "INFO", "DELETE", "PAUSE", "UNPIN", "LEADER.STEPDOWN")
        ]
        closed += [f"$JS.API.CONSUMER.CREATE.{stream}.x.kinora.>", f"$JS.API.CONSUMER.MSG.NEXT.{stream}.x"]
    return closed


def subscribe_rows() -> list[Row]:
    rows: list[Row] = [
        (subject, nobody)
        for subject in (
            ">",
            "kinora.>",
            "kinora.v1.>",
            f"kinora.v1.{OURS}.>",
            "kinora.work.>",
            "kinora.report.>",
            "kinora.claim.>",
            "kinora.control.>",
            f"kinora.control.{OURS}.>",
            "kinora.telemetry.>",
            subjects.telemetry_subject(OURS, JOB),
            subjects.hello_subject(OURS, AGENT),
            "_INBOX.>",
            "_INBOX.*.x",
            "$JS.>",
            "$JS.EVENT.>",
            "$JS.API.>",
            "$SYS.>",
            "_R_.>",
        )
    ]
    for organization_id, agent_id in ((OURS, AGENT), (OURS, COLLEAGUE), (THEIRS, FOREIGNER)):
        mine = lambda who, o=organization_id, a=agent_id: own(who, o, a)  # noqa: E731
        rows.append((subjects.control_subject(organization_id, agent_id), mine))
        rows.append((f"{subjects.agent_inbox(agent_id)}.>", mine))
    rows.append((f"{READER_INBOX}.>", lambda who: who == "subscriber"))
    rows.append((subjects.HEADS_SUBJECT, lambda who: who == "subscriber"))
    return rows


@dataclass
class Actor:
    """A connected user, and what the server refused it."""

    client: Client
    errors: list[str] = field(default_factory=list)

    @property
    def js(self) -> JetStreamContext:
        return self.client.jetstream()

    async def may_publish(self, subject: str) -> bool:
        self.errors.clear()
        await self.client.publish(subject, b"{}")
        await self.settled()
        return self._judged(subject)

    async def may_subscribe(self, subject: str) -> bool:
        self.errors.clear()
        subscription = await self.client.subscribe(subject)
        await self.settled()
        allowed = self._judged(subject)
        await subscription.unsubscribe()
        await self.settled()
        return allowed

    async def settled(self) -> None:
        """Wait for the server's verdict: it answers in order. The first ping may overtake what is sent."""
        await self.client.flush()
        await self.client.flush()

    def _judged(self, subject: str) -> bool:
        if not self.errors:
            return True
        (error,) = self.errors
        assert "permissions violation" in error.lower(), error
        assert f'"{subject}"'.lower() in error.lower(), error
        return False


@asynccontextmanager
async def connected(user: NatsUser, inbox: str) -> AsyncIterator[Actor]:
    actor = Actor(Client())

    async def note(error: Exception) -> None:
        actor.errors.append(str(error))

    seed = user.seed.get_secret_value()
    await actor.client.connect(
        user.url,
        user_credentials=FreshCredentials(lambda: credentials_text(user.jwt, seed)),
        inbox_prefix=inbox,
        error_cb=note,
    )
    try:
        yield actor
    finally:
        await actor.client.close()


@dataclass
class Stage:
    """All streams and queues, and everybody who may be connected."""

    nats: NatsSettings
    agent_user: AgentUser
    control: Client

    @property
    def js(self) -> JetStreamContext:
        return self.control.jetstream()

    @asynccontextmanager
    async def acting(self, who: str) -> AsyncIterator[Actor]:
        if who == "subscriber":
            signed = signed_subscriber(self.nats, public_key(READER_SEED), OURS, SUBSCRIPTION, 60)
            user = NatsUser(url=self.nats.url, jwt=signed.jwt, seed=READER_SEED)  # type: ignore[arg-type]
            inbox = READER_INBOX
        else:
            organization_id, agent_id = AGENTS[who]
            user, inbox = self.agent_user(organization_id, agent_id), subjects.agent_inbox(agent_id)
        async with connected(user, inbox) as actor:
            yield actor

    async def state(self) -> dict[str, Any]:
        """How much every stream holds, and who reads it."""
        return {
            str(info.config.name): (info.state.messages, info.state.last_seq, info.state.consumer_count)
            for info in await self.js.streams_info()
        }


@pytest.fixture
async def stage(nats: NatsSettings, nats_agent: AgentUser) -> AsyncIterator[Stage]:
    async with connect(nats, "test") as control:
        topology = Topology(control.jetstream(), events_max_bytes=2**20)
        await topology.ensure_streams()
        for organization_id, subscription_id in ((OURS, SUBSCRIPTION), (THEIRS, OTHER_SUBSCRIPTION)):
            for pool in ("default", "gpus"):
                await topology.ensure_pool(organization_id, pool)
            await topology.make_subscriber(
                subjects.subscriber_durable(organization_id, subscription_id),
                subjects.subscription_subjects(organization_id, None, ()),
                1,
            )
        yield Stage(nats, nats_agent, control)


@pytest.mark.parametrize("who", WHO)
async def test_everybody_publishes_exactly_what_they_may(stage: Stage, who: str) -> None:
    rows = publish_rows()
    assert len(rows) > 200
    assert any(allowed(who) for _, allowed in rows)
    before = await stage.state()
    async with stage.acting(who) as actor:
        wrong = [
            f"{who} {'may' if allowed(who) else 'may not'} publish to {subject}"
            for subject, allowed in rows
            if await actor.may_publish(subject) != allowed(who)
        ]
    assert wrong == []
    after = await stage.state()
    # Its own reports are all that an agent can add to any stream.
    reports = before.pop("REPORTS"), after.pop("REPORTS")
    assert reports[1][0] - reports[0][0] == (who in AGENTS)
    assert before == after


@pytest.mark.parametrize("who", WHO)
async def test_everybody_hears_exactly_what_they_may(stage: Stage, who: str) -> None:
    rows = subscribe_rows()
    assert any(allowed(who) for _, allowed in rows)
    async with stage.acting(who) as actor:
        wrong = [
            f"{who} {'may' if allowed(who) else 'may not'} subscribe to {subject}"
            for subject, allowed in rows
            if await actor.may_subscribe(subject) != allowed(who)
        ]
    assert wrong == []


@pytest.mark.parametrize("options", [{}, {"user": "control", "password": "control"}, {"token": "x"}], ids=str)
async def test_strangers_are_not_let_in(servers: EmbeddedServers, options: dict[str, str]) -> None:
    stranger = nats_client.NATS()
    with pytest.raises(NatsError, match="Authorization"):
        await stranger.connect(servers.nats_control.url, allow_reconnect=False, **options)  # type: ignore[arg-type]
    await stranger.close()


async def test_a_jwt_is_of_no_use_to_whoever_lacks_its_key(stage: Stage) -> None:
    user = stage.agent_user(OURS, AGENT)
    thief = user.model_copy(update={"seed": stage.agent_user(OURS, AGENT).seed})
    client = nats_client.NATS()
    text = credentials_text(thief.jwt, thief.seed.get_secret_value())
    with pytest.raises(NatsError, match="Authorization"):
        await client.connect(
            thief.url, user_credentials=FreshCredentials(lambda: text), allow_reconnect=False
        )
    await client.close()


@pytest.mark.parametrize(
    ("rights", "asks", "hears"),
    [
        (telemetry_rights, set(), [subjects.telemetry_subject(OURS, JOB)]),
        (
            reading_rights,
            {
                "$JS.API.STREAM.INFO.EVENTS",
                "$JS.API.STREAM.MSG.GET.EVENTS",
                "$JS.API.CONSUMER.INFO.EVENTS.x",
                f"$JS.API.CONSUMER.INFO.EVENTS.{READER}",
                f"$JS.API.CONSUMER.INFO.EVENTS.{OTHER_READER}",
            },
            [],
        ),
    ],
    ids=["telemetry", "reading"],
)
async def test_the_api_s_own_connections_only_look(
    stage: Stage, rights: Callable[[str], Rights], asks: set[str], hears: list[str]
) -> None:
    async with connect(stage.nats, "api", rights=rights) as client:
        actor = Actor(client)

        async def note(error: Exception) -> None:
            actor.errors.append(str(error))

        client._error_cb = note
        assert {subject for subject, _ in publish_rows() if await actor.may_publish(subject)} == asks
        heard = [subject for subject, _ in subscribe_rows() if await actor.may_subscribe(subject)]
        assert heard == hears


async def test_an_agent_asks_reports_and_works(stage: Stage) -> None:
    async def answer(message: Msg) -> None:
        await message.respond(b"answer to " + message.subject.encode())

    await stage.control.subscribe("kinora.*.*.*", cb=answer)
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await stage.control.subscribe(subjects.telemetry_subject("*", "*"), cb=heard.put)
    async with stage.acting("agent") as agent:
        for subject in subjects.request_subjects(OURS, AGENT):
            reply = await agent.client.request(subject, b"{}", timeout=5)
            assert reply.data == b"answer to " + subject.encode()
        headers = {"Nats-Msg-Id": "one"}
        for _ in range(2):
            stored = await agent.js.publish(
                subjects.report_subject(OURS, AGENT, JOB), b"report", stream="REPORTS", headers=headers
            )
        assert (stored.stream, stored.duplicate) == ("REPORTS", True)
        await agent.client.publish(subjects.telemetry_subject(OURS, JOB), b"point")
        assert (await asyncio.wait_for(heard.get(), 5)).data == b"point"
        control = await agent.client.subscribe(subjects.control_subject(OURS, AGENT))
        await agent.client.flush()
        await stage.control.publish(subjects.control_subject(OURS, AGENT), b"stop")
        assert (await control.next_msg(timeout=5)).data == b"stop"
        await stage.js.publish(subjects.work_subject(OURS, "default", "train", "high", JOB), b"offer")
        durable = subjects.work_durable(OURS, "default", "train", "high")
        queue = await agent.js.pull_subscribe_bind(durable=durable, stream="WORK")
        (message,) = await queue.fetch(1, timeout=5)
        assert message.data == b"offer"
        await message.ack_sync(timeout=5)
        assert (await stage.state())["WORK"][0] == 0
        assert agent.errors == []


async def test_a_subscriber_reads_its_own_organization_s_events(stage: Stage) -> None:
    for number, organization_id in enumerate((OURS, THEIRS, OURS)):
        subject = subjects.event_subject(organization_id, "ws", "kinora.job.requested")
        await stage.js.publish(subject, str(number).encode())
    async with stage.acting("subscriber") as reader:
        js = reader.client.jetstream(prefix=subjects.SUBSCRIBER_API)
        assert (await js.consumer_info("EVENTS", READER)).num_pending == 2
        events = await js.pull_subscribe_bind(durable=READER, stream="EVENTS")
        found = []
        for _ in range(2):
            (message,) = await events.fetch(1, timeout=5)
            found.append(message.data)
            await message.ack_sync(timeout=5)
        assert found == [b"0", b"2"]
        with pytest.raises(NatsTimeoutError):
            await events.fetch(1, timeout=0.2)
        assert reader.errors == []


REDIRECTED = (
    subjects.claim_subject(OURS, COLLEAGUE),
    subjects.claim_subject(THEIRS, FOREIGNER),
    subjects.heartbeat_subject(THEIRS, FOREIGNER),
    subjects.report_subject(THEIRS, FOREIGNER, JOB),
    subjects.telemetry_subject(THEIRS, JOB),
    subjects.event_subject(OURS, "ws", "kinora.job.requested"),
    subjects.work_subject(THEIRS, "default", "train", "high", JOB),
    "$JS.API.STREAM.PURGE.REPORTS",
    "$JS.API.STREAM.DELETE.REPORTS",
    "$JS.API.CONSUMER.DELETE.REPORTS.inbox",
)
"""Where nothing may be had delivered. To the subject of a reply the server checks no right."""


@pytest.mark.parametrize("who", ["agent", "subscriber"])
async def test_what_is_pulled_cannot_be_delivered_as_somebody_else_s_words(stage: Stage, who: str) -> None:
    if who == "agent":
        durable, stream = subjects.work_durable(OURS, "default", "train", "high"), "WORK"
        subject = subjects.work_subject(OURS, "default", "train", "high", "{}")
    else:
        durable, stream = READER, "EVENTS"
        # One redirected event would otherwise hold up the others.
        found = (await stage.js.consumer_info(stream, durable)).config
        await stage.js.add_consumer(stream, found.evolve(max_ack_pending=1000))
        subject = subjects.event_subject(OURS, "ws", "kinora.job.{}")
    await stage.js.publish(subjects.report_subject(THEIRS, FOREIGNER, JOB), b"to be kept")
    for number in range(len(REDIRECTED) + 1):
        # Empty, as the deletions demand.
        await stage.js.publish(subject.format(number), b"")
    before = await stage.state()
    overheard: list[str] = []

    async def note(message: Msg) -> None:
        overheard.append(message.subject)

    for pattern in (
        "kinora.claim.>",
        "kinora.heartbeat.>",
        "kinora.telemetry.>",
        "kinora.v1.>",
        "kinora.report.>",
    ):
        await stage.control.subscribe(pattern, cb=note)
    await stage.control.flush()
    ask = json.dumps({"batch": 1, "expires": 500_000_000}).encode()
    prefix = "$JS.API" if who == "agent" else subjects.SUBSCRIBER_API
    async with stage.acting(who) as actor:
        for target in REDIRECTED:
            await actor.client.publish(f"{prefix}.CONSUMER.MSG.NEXT.{stream}.{durable}", ask, reply=target)
        # Requests are served in order: once this one is, the others have been, or never will.
        queue = await actor.client.jetstream(prefix=prefix).pull_subscribe_bind(
            durable=durable, stream=stream
        )
        assert len(await queue.fetch(1, timeout=5)) == 1
        assert actor.errors == []
    await stage.control.flush()
    assert (overheard, await stage.state()) == ([], before)
