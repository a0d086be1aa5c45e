"""The control plane's real processes, each behind wires of its own to the real servers."""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

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

CONTROL: tuple[Role, ...] = ("api", "orchestrator", "projections", "auditor")
READY_SECONDS = 60.0
STOP_SECONDS = 40.0


@dataclass
class Plane:
    """Processes and wires; `database` and `broker` are by role."""

    servers: EmbeddedServers
    database: dict[Role, Wire]
    broker: dict[Role, Wire]
    settings: dict[Role, Message]
    processes: dict[Role, asyncio.subprocess.Process] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.servers.api_url

    @property
    def wires(self) -> list[Wire]:
        return [*self.database.values(), *self.broker.values()]

    def log(self, role: Role) -> Path:
        return self.servers.folder.logs / f"{role}.log"

    async def start(self, role: Role) -> None:
        """Start a role, and return without waiting for what it needs."""
        folder = self.servers.folder
        settings_file, ready_file = folder.run / f"{role}.settings.json", folder.run / f"{role}.ready"
        write_settings(settings_file, self.settings[role])
        ready_file.unlink(missing_ok=True)
        with self.log(role).open("ab") as output:
            self.processes[role] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "kinora", role),
                env=os.environ
                | {
                    HOME_VARIABLE: str(folder.root),
                    SETTINGS_VARIABLE: str(settings_file),
                    READY_VARIABLE: str(ready_file),
                },
                stdout=output,
                stderr=output,
            )

    async def ready(self, role: Role) -> None:
        """Return once a role works.

        Raises:
            AssertionError: with what it said, when it ended or took too long.
        """
        ready_file = self.servers.folder.run / f"{role}.ready"
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not ready_file.exists():
                    assert self.processes[role].returncode is None, self._last_words(role)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{role} is not ready: {self._last_words(role)}") from None

    async def kill(self, role: Role) -> None:
        """SIGKILL, and start it again as a supervisor would."""
        process = self.processes[role]
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await self.start(role)

    async def freeze(self, role: Role, seconds: float) -> None:
        """SIGSTOP for so long."""
        process = psutil.Process(self.processes[role].pid)
        process.suspend()
        try:
            await asyncio.sleep(seconds)
        finally:
            process.resume()

    async def stop(self) -> None:
        """End every role as an operator would.

        Raises:
            AssertionError: when one did not end in time, or not well.
        """
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.terminate()
        for role, process in self.processes.items():
            try:
                code = await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
                raise AssertionError(f"{role} did not stop: {self._last_words(role)}") from None
            assert code == 0, f"{role} ended with {code}: {self._last_words(role)}"

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

    def _last_words(self, role: Role) -> str:
        return self.log(role).read_text(errors="replace")[-4000:]


async def _until_dead(servers: EmbeddedServers, name: ServerName) -> None:
    deadline = time.monotonic() + 20
    while servers.child(name).running:
        assert time.monotonic() < deadline, f"{name} does not die"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def wired_plane(folder: Path) -> AsyncIterator[Plane]:
    """Servers, wires and roles; all ready, and all ended in the end."""
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(EmbeddedServers(folder))
        postgres, nats = servers.postgres, servers.nats_control
        socket = unix(f"{postgres.host}/.s.PGSQL.{postgres.port}")
        port = tcp("127.0.0.1", int(nats.url.rsplit(":", 1)[1]))
        database = {role: await stack.enter_async_context(Wire(socket)) for role in CONTROL}
        broker: dict[Role, Wire] = {
            role: await stack.enter_async_context(Wire(port)) for role in ("api", "orchestrator", "auditor")
        }
        standard = {
            "api": api_settings(servers),
            "orchestrator": orchestrator_settings(servers),
            "projections": projections_settings(servers),
            # So that it sees everything again and again within the run.
            "auditor": auditor_settings(servers).model_copy(update={"round_seconds": 0.5, "effort": 0.2}),
        }
        settings: dict[Role, Message] = {}
        for role in CONTROL:
            wired: dict[str, object] = {
                "postgres": postgres.model_copy(update={"host": "127.0.0.1", "port": database[role].port})
            }
            if role in broker:
                wired["nats"] = nats.model_copy(update={"url": f"nats://127.0.0.1:{broker[role].port}"})
            settings[role] = standard[role].model_copy(update=wired | dict(UNLIMITED.get(role, {})))
        plane = Plane(servers, database, broker, settings)
        try:
            for role in CONTROL:
                await plane.start(role)
            for role in CONTROL:
                await plane.ready(role)
            yield plane
        finally:
            await plane.stop()
