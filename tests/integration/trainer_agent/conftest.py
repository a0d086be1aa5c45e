"""A peer to talk to, and what an attempt needs of an agent without running the whole of one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from schemas.events.agent import Capabilities
from schemas.ids import Prefix, new_id
from schemas.objects import StoredObject, content_key
from schemas.settings import NatsSettings, S3Settings
from schemas.subjects import agent_inbox
from schemas.training import Hyperparameters
from schemas.work import HeldItem, TrainAssignment
from tests.conftest import AgentUser
from tests.integration.trainer_agent.peer import POOL, Peer, manifest_of, serving_peer
from tests.system_fixtures import Samples, make_samples
from trainer_agent.cache import ContentCache
from trainer_agent.connection import Connection
from trainer_agent.credentials import NodeCredentials
from trainer_agent.folders import locked
from trainer_agent.presign import Presigner
from trainer_agent.run import serve
from trainer_agent.settings import AgentSettings
from trainer_agent.transfer import http_client

CAPABILITIES = Capabilities(
    profile="cpu", device="test node", cpu_cores=1, memory_bytes=2**30, four_bit_kernel=True, versions={}
)


@pytest.fixture
async def peer(nats: NatsSettings, s3: S3Settings) -> AsyncIterator[Peer]:
    async with serving_peer(nats, s3) as peer:
        yield peer


@pytest.fixture
def settings(peer: Peer, nats_agent: AgentUser, tmp_path: Path) -> AgentSettings:
    return AgentSettings(
        agent_id=peer.agent_id,
        organization_id=peer.organization_id,
        pool=POOL,
        name="test node",
        nats=nats_agent(peer.organization_id, peer.agent_id, POOL),
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
    credentials = NodeCredentials(settings.nats, tmp_path / "nats.jwt")
    async with (
        Connection(credentials, name="parts", inbox_prefix=inbox) as connection,
        http_client() as http,
    ):
        await connection.session_after(0)
        yield Parts(connection, http, cache, held, Presigner(connection, settings, held))


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return make_samples(tmp_path_factory, clips=24)


@dataclass
class Training:
    """A job to train, in the store, with a number of steps that a test chooses."""

    peer: Peer
    assignment: TrainAssignment
    held: HeldItem

    async def offer(self) -> None:
        await self.peer.offer(self.held, self.assignment, "train")


MakeTraining = Callable[..., Awaitable[Training]]


@pytest.fixture
def make_training(peer: Peer, samples: Samples) -> MakeTraining:
    async def make(
        steps: int, *, checkpoint_every: int = 4, held_out: float = 0.1, base: Path | None = None
    ) -> Training:
        model, _ = await peer.put_folder(base or samples.model)
        dataset, files = await peer.put_folder(samples.clips)
        captions = await asyncio.to_thread((samples.clips / "captions.jsonl").read_bytes)
        manifest = await peer.put_content(
            "manifest.json", manifest_of(files, captions).model_dump_json().encode()
        )
        hyperparameters = Hyperparameters(
            max_steps=steps,
            batch_size=2,
            frames=2,
            checkpoint_every_steps=checkpoint_every,
            held_out_fraction=held_out,
            max_new_tokens=2,
        )
        assignment = TrainAssignment(
            model_listing=model,
            dataset_listing=dataset,
            manifest=StoredObject(
                **manifest.model_dump(), key=content_key(peer.organization_id, manifest.sha256)
            ),
            hyperparameters=hyperparameters,
            total_steps=steps,
        )
        return Training(peer, assignment, HeldItem(item_id=new_id(Prefix.JOB), attempt=1))

    return make


@dataclass
class RunningAgent:
    """A whole agent in this process."""

    stop: asyncio.Event
    task: "asyncio.Task[None]"

    async def ends(self, seconds: float = 60.0) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, seconds)


@pytest.fixture
async def agent(settings: AgentSettings) -> AsyncIterator[RunningAgent]:
    async with running_agent(settings) as running:
        yield running


@asynccontextmanager
async def running_agent(
    settings: AgentSettings, capabilities: Capabilities = CAPABILITIES
) -> AsyncIterator[RunningAgent]:
    """Welcomed and looking for work. Its probe is left out here: it takes as long as a whole training."""
    stop, ready = asyncio.Event(), asyncio.Event()
    with locked(settings.work_folder) as folder:
        task = asyncio.create_task(serve(settings, folder, capabilities, stop, ready=ready.set))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({task, waiting}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert ready.is_set(), task
        running = RunningAgent(stop, task)
        yield running
        await running.ends()


def engines_of(pid: int) -> list[psutil.Process]:
    """The engine processes that were started by `pid`, also when it is gone."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "qlora_engine" in command and str(pid) in command:  # --parent-pid
            found.append(process)
    return found
