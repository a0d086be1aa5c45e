"""The control plane's real processes, each behind wires of its own to the real servers."""

import asyncio
import os
import shutil
import signal
import socket as socket_module
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import psutil
import psycopg

from benchmarks.installation import UNLIMITED
from kinora.local.role_settings import (
    api_settings,
    auditor_settings,
    orchestrator_settings,
    projections_settings,
)
from kinora.local.servers import EmbeddedServers, ServerName
from kinora.roles import READY_VARIABLE, Role
from kinora.settings import HOME_VARIABLE, SETTINGS_VARIABLE, write_settings
from schemas.base import Message
from tests.faults.wire import Wire, tcp, unix

Name = Literal["api", "api-2", "orchestrator", "orchestrator-2", "projections", "auditor"]
ROLE_OF: dict[Name, Role] = {
    "api": "api",
    "api-2": "api",
    "orchestrator": "orchestrator",
    "orchestrator-2": "orchestrator",
    "projections": "projections",
    "auditor": "auditor",
}
CONTROL: tuple[Name, ...] = ("api", "api-2", "orchestrator", "projections", "auditor")
"""Two APIs, so that two processes append at the same time."""
STANDBY: tuple[Name, ...] = ("orchestrator-2",)
"""Waits for its turn, and is not ready before."""
READY_SECONDS = 60.0
STOP_SECONDS = 40.0


@dataclass
class Plane:
    """Processes and wires by the processes' names."""

    servers: EmbeddedServers
    database: dict[Name, Wire]
    broker: dict[Name, Wire]
    settings: dict[Name, Message]
    urls: tuple[str, ...]
    """Of the APIs."""
    names: tuple[Name, ...] = CONTROL
    """The processes that there are."""
    program: Callable[[Name], Sequence[str]] = lambda name: ("kinora", ROLE_OF[name])
    """What python runs with `-m`."""
    environment: dict[str, str] = field(default_factory=dict)
    """What the processes have beside our own."""
    processes: dict[Name, asyncio.subprocess.Process] = field(default_factory=dict)

    @property
    def wires(self) -> list[Wire]:
        return [*self.database.values(), *self.broker.values()]

    def log(self, name: Name) -> Path:
        return self.servers.folder.logs / f"{name}.log"

    async def start(self, name: Name) -> None:
        """Start a process, and return without waiting for what it needs."""
        folder = self.servers.folder
        settings_file, ready_file = folder.run / f"{name}.settings.json", folder.run / f"{name}.ready"
        write_settings(settings_file, self.settings[name])
        ready_file.unlink(missing_ok=True)
        with self.log(name).open("ab") as output:
            self.processes[name] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *self.program(name)),
                env=os.environ
                | self.environment
                | {
                    HOME_VARIABLE: str(folder.root),
                    SETTINGS_VARIABLE: str(settings_file),
                    READY_VARIABLE: str(ready_file),
                },
                stdout=output,
                stderr=output,
            )

    async def ready(self, name: Name) -> None:
        """Return once a process works.

        Raises:
            AssertionError: with what it said, when it ended or took too long.
        """
        ready_file = self.servers.folder.run / f"{name}.ready"
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not ready_file.exists():
                    assert self.processes[name].returncode is None, self._last_words(name)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{name} is not ready: {self._last_words(name)}") from None

    async def kill(self, name: Name) -> None:
        """SIGKILL, and start it again as a supervisor would."""
        process = self.processes[name]
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await self.start(name)

    async def freeze(self, name: Name, seconds: float) -> None:
        """SIGSTOP for so long."""
        process = psutil.Process(self.processes[name].pid)
        process.suspend()
        try:
            await asyncio.sleep(seconds)
        finally:
            process.resume()

    async def start_all(self) -> None:
        """Return once all work that have not to wait for their turn."""
        for name in self.names:
            if name not in STANDBY:
                await self.start(name)
        await self.all_ready()
        for name in self.names:
            if name in STANDBY:
                await self.start(name)

    async def all_ready(self) -> None:
        for name in self.names:
            if name not in STANDBY:
                await self.ready(name)

    async def revive(self) -> NoReturn:
        """Start again, as a supervisor would, whatever killed itself. `kill` may not be used meanwhile."""
        while True:
            for name, process in list(self.processes.items()):
                if process.returncode == -signal.SIGKILL:
                    await self.start(name)
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        """SIGKILL for all."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self.processes.clear()

    async def stop(self) -> None:
        """End every process as an operator would.

        Raises:
            AssertionError: when one did not end in time, or not well.
        """
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.terminate()
        for name, process in self.processes.items():
            try:
                code = await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
                raise AssertionError(f"{name} did not stop: {self._last_words(name)}") from None
            assert code == 0, f"{name} ended with {code}: {self._last_words(name)}"

    async def standing_by(self) -> None:
        """Return once as many orchestrators as there are hold or want the place of the active one."""
        wanted = sum(ROLE_OF[name] == "orchestrator" for name in self.names)
        deadline = time.monotonic() + READY_SECONDS
        while await self._orchestrators() < wanted:
            assert time.monotonic() < deadline, "no other orchestrator stands by"
            await asyncio.sleep(0.1)

    async def _orchestrators(self) -> int:
        async with await psycopg.AsyncConnection.connect(
            self.servers.postgres_superuser.conninfo(), autocommit=True
        ) as connection:
            cursor = await connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'kinora orchestrator lock'"
            )
            row = await cursor.fetchone()
        return int(row[0]) if row else 0

    # ---- the servers ------------------------------------------------------------------------------

    async def terminate_backends(self) -> int:
        """`pg_terminate_backend` on every session of the service's role."""
        async with await psycopg.AsyncConnection.connect(
            self.servers.postgres_superuser.conninfo(), autocommit=True
        ) as connection:
            cursor = await connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = %s",
                [self.servers.postgres.user],
            )
            row = await cursor.fetchone()
        return int(row[0]) if row else 0

    async def kill_server(self, name: ServerName) -> None:
        """SIGKILL a server, and start it again on what is on its disk."""
        await self._end_server(name)
        await self.servers.revive(name)

    async def wipe_broker(self) -> None:
        """Everything that JetStream stored is gone, as after a lost disk."""
        await self._end_server("nats")
        await asyncio.to_thread(shutil.rmtree, self.servers.folder.nats / "store")
        await self.servers.revive("nats")

    async def _end_server(self, name: ServerName) -> None:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(self.servers.child(name).pid).kill()
        await _until_dead(self.servers, name)

    def _last_words(self, name: Name) -> str:
        return self.log(name).read_text(errors="replace")[-4000:]


async def _until_dead(servers: EmbeddedServers, name: ServerName) -> None:
    deadline = time.monotonic() + 20
    while servers.child(name).running:
        assert time.monotonic() < deadline, f"{name} does not die"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def wired_plane(folder: Path, names: tuple[Name, ...] = CONTROL) -> AsyncIterator[Plane]:
    """Servers and wires, and no process yet; those that are started are ended in the end."""
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(EmbeddedServers(folder))
        postgres, nats = servers.postgres, servers.nats_control
        socket = unix(f"{postgres.host}/.s.PGSQL.{postgres.port}")
        port = tcp("127.0.0.1", int(nats.url.rsplit(":", 1)[1]))
        database = {name: await stack.enter_async_context(Wire(socket)) for name in names}
        broker: dict[Name, Wire] = {
            name: await stack.enter_async_context(Wire(port)) for name in names if name != "projections"
        }
        standard: dict[Role, Message] = {
            "api": api_settings(servers),
            "orchestrator": orchestrator_settings(servers),
            "projections": projections_settings(servers),
            # So that it sees everything again and again within the run.
            "auditor": auditor_settings(servers).model_copy(update={"round_seconds": 0.5, "effort": 0.2}),
        }
        second = {"port": free_port(), "public_url": ""}
        second["public_url"] = f"http://127.0.0.1:{second['port']}"
        settings: dict[Name, Message] = {}
        for name in names:
            role = ROLE_OF[name]
            wired: dict[str, object] = {
                "postgres": postgres.model_copy(update={"host": "127.0.0.1", "port": database[name].port})
            }
            if name in broker:
                wired["nats"] = nats.model_copy(update={"url": f"nats://127.0.0.1:{broker[name].port}"})
            if name == "api-2":
                wired |= second
            if name in STANDBY:
                wired["metrics"] = None  # whose port the other one has
            settings[name] = standard[role].model_copy(update=wired | dict(UNLIMITED.get(role, {})))
        urls = {"api": servers.api_url, "api-2": str(second["public_url"])}
        plane = Plane(
            servers,
            database,
            broker,
            settings,
            tuple(url for name, url in urls.items() if name in names),
            names,
        )
        try:
            yield plane
        finally:
            await plane.stop()


def free_port() -> int:
    """One that nobody listens on just now."""
    with socket_module.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
