"""Credentials that live for seconds: connections outlast them and lose nothing. Revoked ones end at once."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError
from structlog.testing import capture_logs

from command_api import orchestrator
from command_api.nats_auth.keys import new_seed, public_key
from command_api.nats_auth.users import FreshCredentials, credentials_text, signed_agent
from command_api.settings import NatsOperatorSettings, OrchestratorSettings
from kinora.local.servers import EmbeddedServers
from schemas import subjects, work
from schemas.commands.agent import JoinAgent, RevokeAgent
from schemas.events.job import AgentAccepted, JobProgressed
from schemas.ids import AgentId
from schemas.settings import NatsSettings, NatsUser, PostgresSettings, S3Settings
from tests.integration.api.running import Backing, running_service
from tests.integration.messaging.world import World, eventually, make_world, progressed, settings_of, started
from trainer_agent.connection import Connection
from trainer_agent.credentials import NodeCredentials
from trainer_agent.errors import NoAnswer, ShutOut
from trainer_agent.renewal import renew
from trainer_agent.settings import AgentSettings
from trainer_agent.waiting import end, running

LIFE_SECONDS = 3
LIVES = 3


@pytest.fixture
async def world(database: PostgresSettings, s3: S3Settings) -> AsyncIterator[World]:
    async with make_world(database, s3) as world:
        yield world


@dataclass
class Node:
    """A machine that joined, with the real agent's connection."""

    settings: AgentSettings
    credentials: NodeCredentials
    connection: Connection

    @property
    def agent_id(self) -> AgentId:
        return self.settings.agent_id

    async def ask(self, subject: str, message: work.Message, reply: type[work.Message]) -> work.Message:
        """As the agent's parts do: again until it is answered."""
        while True:
            try:
                return await self.connection.request(subject, message, reply)
            except NoAnswer:
                await asyncio.sleep(0.1)

    async def report(self, report: work.Report) -> None:
        subject = subjects.report_subject(self.settings.organization_id, self.agent_id, report.item_id)
        while True:
            try:
                await self.connection.publish_stored(
                    subject, report, stream="REPORTS", message_id=f"{report.item_id}:{report.sequence}"
                )
            except NoAnswer:
                await asyncio.sleep(0.1)
            else:
                return

    async def offered(self) -> work.WorkOffer:
        durable = subjects.work_durable(self.settings.organization_id, "default", "train", "normal")
        while True:
            try:
                queue = await self.connection.pull("WORK", durable)
                (message,) = await queue.fetch(1, timeout=1)
            except (NoAnswer, TimeoutError, NatsError):
                continue
            await message.ack()
            return work.WorkOffer.model_validate_json(message.data)


@asynccontextmanager
async def joined_node(world: World, nats: NatsSettings, folder: Path) -> AsyncIterator[Node]:
    agent_id, seed = await world.enroll(), new_seed("user")
    await world.ask(JoinAgent(agent_id=agent_id, public_key=public_key(seed)))
    signed = signed_agent(nats, public_key(seed), world.organization_id, agent_id, "default")
    settings = AgentSettings(
        agent_id=agent_id,
        organization_id=world.organization_id,
        pool="default",
        name="node",
        nats=NatsUser(url=nats.url, jwt=signed.jwt, seed=seed),  # type: ignore[arg-type]
        work_folder=folder,
    )
    credentials = NodeCredentials(settings.nats, folder / f"{agent_id}.jwt")
    connection = Connection(credentials, name="node", inbox_prefix=subjects.agent_inbox(agent_id))
    async with (
        connection,
        httpx.AsyncClient(trust_env=False) as http,
        running(renew(connection, credentials, settings, http)),
    ):
        await asyncio.wait_for(connection.session_after(0), 20)
        yield Node(settings, credentials, connection)


@asynccontextmanager
async def counted_orchestrator(settings: OrchestratorSettings) -> AsyncIterator[list[None]]:
    """A running orchestrator, and how often it had to begin."""
    began: list[None] = []
    active, stop = asyncio.Event(), asyncio.Event()

    def ready() -> None:
        began.append(None)
        active.set()

    task = asyncio.create_task(orchestrator.run(settings, stop, ready=ready))
    try:
        await asyncio.wait_for(active.wait(), 20)
        yield began
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)


async def test_agent_and_control_plane_outlive_their_credentials(
    world: World, database: PostgresSettings, nats: NatsSettings, s3: S3Settings, tmp_path: Path
) -> None:
    brief = nats.model_copy(update={"user_seconds": LIFE_SECONDS})
    await world.make_inputs()
    async with (
        counted_orchestrator(settings_of(database, brief, s3)) as began,
        joined_node(world, brief, tmp_path) as node,
    ):
        first = node.credentials.jwt
        job_id = await world.request_job()
        offer = await node.offered()
        place = (world.organization_id, node.agent_id)
        claim = work.ClaimRequest(item_id=offer.item_id, attempt=offer.attempt)
        reply = await node.ask(subjects.claim_subject(*place), claim, work.ClaimReply)
        assert isinstance(reply, work.ClaimReply)
        assert (offer.item_id, reply.outcome) == (job_id, "granted")

        def numbered(sequence: int, body: work.ReportBody) -> work.Report:
            return work.Report(
                item_id=job_id,
                attempt=offer.attempt,
                sequence=sequence,
                occurred_at=datetime.now(UTC),
                body=body,
            )

        await node.report(numbered(1, work.Accepted()))
        await node.report(numbered(2, started()))
        held = work.HeldItem(item_id=job_id, attempt=offer.attempt)
        ends = time.monotonic() + LIVES * LIFE_SECONDS
        step = 0
        while time.monotonic() < ends and step < 20:
            step += 1
            await node.report(numbered(2 + step, progressed(step)))
            beat = await node.ask(
                subjects.heartbeat_subject(*place), work.Heartbeat(held=held), work.HeartbeatReply
            )
            assert isinstance(beat, work.HeartbeatReply)
            assert beat.desired == "run"
            await asyncio.sleep(LIVES * LIFE_SECONDS / 20)
        await world.event(job_id, JobProgressed, count=step)
        story = [recorded.event for recorded in world.story(job_id)]
        assert sum(isinstance(event, AgentAccepted) for event in story) == 1
        assert [event.step for event in story if isinstance(event, JobProgressed)] == list(range(1, step + 1))
        assert await node.connection.session_after(LIVES - 1) >= LIVES
        assert node.credentials.jwt != first
        assert began == [None]
    # The next start begins with the newest right, not with the one of the enrolment.
    kept = NodeCredentials(node.settings.nats, tmp_path / f"{node.agent_id}.jwt")
    assert kept.jwt == node.credentials.jwt


async def test_a_revoked_agent_is_cut_off_at_once_and_stays_out(
    world: World,
    database: PostgresSettings,
    nats: NatsSettings,
    s3: S3Settings,
    servers: EmbeddedServers,
    tmp_path: Path,
) -> None:
    secrets = servers.secrets
    operator = NatsOperatorSettings(
        operator_seed=secrets.nats_operator_seed, system_seed=secrets.nats_system_seed
    )
    settings = settings_of(database, nats, s3).model_copy(update={"nats_operator": operator})
    async with (
        counted_orchestrator(settings),
        joined_node(world, nats, tmp_path) as node,
        joined_node(world, nats, tmp_path) as colleague,
    ):
        client = node.connection.client
        assert client is not None
        await world.ask(RevokeAgent(agent_id=node.agent_id, reason="stolen"))

        async def cut_off() -> bool:
            return client.is_closed

        await eventually(cut_off, "the end of the revoked agent's connection")
        with pytest.raises(NoAnswer):
            await node.connection.request(
                subjects.heartbeat_subject(world.organization_id, node.agent_id),
                work.Heartbeat(),
                work.HeartbeatReply,
            )
        # Also after a restart of the server, which keeps what it was told.
        await servers.restart("nats")
        user = node.settings.nats
        text = credentials_text(user.jwt, user.seed.get_secret_value())
        again = Client()
        with pytest.raises(NatsError, match="Authorization"):
            await again.connect(
                user.url, user_credentials=FreshCredentials(lambda: text), allow_reconnect=False
            )
        await again.close()
        beat = await colleague.ask(
            subjects.heartbeat_subject(world.organization_id, colleague.agent_id),
            work.Heartbeat(),
            work.HeartbeatReply,
        )
        assert isinstance(beat, work.HeartbeatReply)
        assert beat.desired == "run"


async def test_a_node_that_nats_refuses_is_shut_out_on_the_word_of_the_api_alone(
    world: World,
    database: PostgresSettings,
    nats: NatsSettings,
    s3: S3Settings,
    servers: EmbeddedServers,
    tmp_path: Path,
) -> None:
    secrets = servers.secrets
    operator = NatsOperatorSettings(
        operator_seed=secrets.nats_operator_seed, system_seed=secrets.nats_system_seed
    )
    settings = settings_of(database, nats, s3).model_copy(update={"nats_operator": operator})
    with running_service(Backing(database, nats, s3), projecting=False) as api:
        async with (
            counted_orchestrator(settings),
            joined_node(world, nats, tmp_path) as node,
            joined_node(world, nats, tmp_path) as colleague,
            httpx.AsyncClient(trust_env=False) as http,
        ):

            def renewing(of: Node, url: str) -> "asyncio.Task[None]":
                asked = of.settings.model_copy(update={"api_url": url})
                return asyncio.create_task(renew(of.connection, of.credentials, asked, http))

            await world.ask(RevokeAgent(agent_id=node.agent_id, reason="stolen"))
            with socket.socket() as nobody, capture_logs() as said:
                nobody.bind(("127.0.0.1", 0))  # and never listens
                deaf = renewing(node, f"http://127.0.0.1:{nobody.getsockname()[1]}")

                async def asked_twice() -> bool:
                    assert not deaf.done()
                    return sum(each["event"] == "nats_refusal_unexplained" for each in said) == 2

                await eventually(asked_twice, "two questions that nobody answers")
                await end(deaf)
                assert deaf.cancelled()
            with pytest.raises(ShutOut, match="revoked for good"):
                await asyncio.wait_for(renewing(node, api.url), 20)

            # Another one that NATS refuses for no good reason: the API says that all is well.
            before = colleague.credentials.jwt
            colleague.connection._note_refusal(NatsError("nats: 'Authorization Violation'"))
            hearing = renewing(colleague, api.url)

            async def renewed() -> bool:
                assert not hearing.done()
                return colleague.credentials.jwt != before

            await eventually(renewed, "another JWT")
            await end(hearing)
            assert hearing.cancelled()

            # A second node joins as the colleague: the first one's key is not the agent's any more.
            await world.ask(JoinAgent(agent_id=colleague.agent_id, public_key=public_key(new_seed("user"))))
            with pytest.raises(ShutOut, match="another node took its place"):
                await asyncio.wait_for(renewing(colleague, api.url), 20)
