"""A peer to talk to, and what an attempt needs of an agent without running the whole of one."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from schemas.ids import Prefix, new_id
from schemas.settings import NatsSettings, S3Settings
from schemas.subjects import agent_inbox
from schemas.work import HeldItem
from tests.integration.trainer_agent.peer import POOL, Peer, serving_peer
from trainer_agent.cache import ContentCache
from trainer_agent.connection import Connection
from trainer_agent.presign import Presigner
from trainer_agent.settings import AgentSettings
from trainer_agent.transfer import http_client


@pytest.fixture
async def peer(nats: NatsSettings, s3: S3Settings) -> AsyncIterator[Peer]:
    async with serving_peer(nats, s3) as peer:
        yield peer


@pytest.fixture
def settings(peer: Peer, nats_agent: NatsSettings, tmp_path: Path) -> AgentSettings:
    return AgentSettings(
        agent_id=peer.agent_id,
        organization_id=peer.organization_id,
        pool=POOL,
        name="test node",
        nats=nats_agent,
        work_folder=tmp_path / "agent",
        engine_threads=1,
    )


@dataclass(frozen=True)
class Parts:
    """The parts of an agent that hold one attempt's connections."""

    connection: Connection
    http: httpx.AsyncClient
    cache: ContentCache
    held: HeldItem
    presigner: Presigner


@pytest.fixture
async def parts(settings: AgentSettings, tmp_path: Path) -> AsyncIterator[Parts]:
    held = HeldItem(item_id=new_id(Prefix.JOB), attempt=1)
    cache = ContentCache(tmp_path / "cache", 10**9)
    cache.prepare()
    inbox = agent_inbox(settings.agent_id)
    async with (
        Connection(settings.nats, name="parts", inbox_prefix=inbox) as connection,
        http_client() as http,
    ):
        await connection.session_after(0)
        yield Parts(connection, http, cache, held, Presigner(connection, settings, held))
