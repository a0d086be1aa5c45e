"""Roles that are started before their servers: they wait, say so, and begin when the servers are there."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kinora.local.folder import DataFolder
from kinora.local.role_settings import (
    agent_settings,
    api_settings,
    orchestrator_settings,
    projections_settings,
)
from kinora.local.servers import EmbeddedServers
from kinora.owner import enrolled_agent, signed_up_owner
from kinora.settings import write_settings
from schemas.base import Message
from schemas.settings import NatsSettings

pytestmark = [pytest.mark.slow_process, pytest.mark.timeout(200)]


@dataclass(frozen=True)
class Started:
    """A role's process, and what it says."""

    process: asyncio.subprocess.Process
    log: Path
    ready_file: Path

    @property
    def ready(self) -> bool:
        return self.ready_file.exists()

    async def says(self, text: str, seconds: float = 40) -> None:
        await self._until(lambda: text in self.log.read_text(), seconds, f"{text!r}")

    async def is_ready(self, seconds: float = 60) -> None:
        await self._until(lambda: self.ready, seconds, "being ready")

    async def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    assert self.process.returncode is None, self.log.read_text()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"waited in vain for {what}; {self.log.read_text()}") from None


@asynccontextmanager
async def started(role: str, settings: Message, folder: Path) -> AsyncIterator[Started]:
    settings_file, log, ready = (folder / f"{role}.{kind}" for kind in ("json", "log", "ready"))
    write_settings(settings_file, settings)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kinora", role),
            env=os.environ | {"KINORA_SETTINGS_FILE": str(settings_file), "KINORA_READY_FILE": str(ready)},
            stdout=output,
            stderr=output,
        )
    try:
        yield Started(process, log, ready)
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0, log.read_text()


async def test_every_role_waits_for_servers_that_are_not_there_yet(
    servers: EmbeddedServers, nats: NatsSettings, tmp_path: Path
) -> None:
    person = DataFolder(tmp_path / "person")
    person.prepare()
    api_of = api_settings(servers)
    async with AsyncExitStack() as stack:

        async def start(role: str, settings: Message) -> Started:
            return await stack.enter_async_context(started(role, settings, tmp_path))

        try:
            await servers.child("postgres").stop()
            await servers.child("nats").stop()
            api = await start("api", api_of)
            orchestrator = await start("orchestrator", orchestrator_settings(servers))
            projections = await start("projections", projections_settings(servers))
            await api.says("does not answer")
            await orchestrator.says("starting over")
            await projections.says("projections.reconnecting")
            assert [role.ready for role in (api, orchestrator, projections)] == [False] * 3

            await servers.revive("postgres")
            await api.is_ready()  # it serves without NATS
            await projections.is_ready()
            await orchestrator.says("NATS:")
            assert not orchestrator.ready
            owner = await asyncio.to_thread(signed_up_owner, person, api_of.public_url, "early")
            enrolled = await asyncio.to_thread(enrolled_agent, person, owner)
            agent = await start("agent", agent_settings(servers, enrolled))
            await agent.says("probed")
            assert not agent.ready
        finally:
            for name in ("postgres", "nats"):
                await servers.revive(name)
        await orchestrator.is_ready()
        await agent.is_ready()
