"""One machine's whole service: starts servers and roles in order, revives them, stops them in reverse."""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

import httpx

from kinora.client import Credentials
from kinora.local.child import Child, Program
from kinora.local.errors import ChildFailed, LocalError
from kinora.local.role_settings import (
    agent_settings,
    api_settings,
    auditor_settings,
    orchestrator_settings,
    projections_settings,
)
from kinora.local.scraping import write_scrape_configuration
from kinora.local.servers import EmbeddedServers, ServerName
from kinora.owner import enrolled_agent, signed_up_owner
from kinora.restarts import Restarts
from kinora.roles import READY_VARIABLE, SETTINGS, STOP_SECONDS, Role, agent_stop_seconds
from kinora.settings import (
    HOME_VARIABLE,
    SETTINGS_VARIABLE,
    Overrides,
    overridden,
    read_overrides,
    write_settings,
)
from schemas.base import Message
from trainer_agent.errors import ShutOut
from trainer_agent.settings import AgentSettings

OnEvent = Callable[[str, str], None]
"""Told (phase, message).

Phases: servers, roles, agent, ready, died, restarted, shut_out, stopping, stopped.
"""

_READY_SECONDS = 90.0
_LOOK_SECONDS = 0.1
_KILL_MARGIN_SECONDS = 5.0
"""A role ends itself when its own time is up; only then is it killed."""


class Supervisor:
    """The running service of one data folder. Enter it in a thread that outlives it (see `Child`).

    `until` waits, and raises when a process dies too often; leaving the context stops everything.
    """

    def __init__(
        self,
        data_folder: Path,
        *,
        owner_username: str = "local",
        import_roots: Sequence[str] = (),
        on_event: OnEvent | None = None,
    ) -> None:
        self.servers = EmbeddedServers(
            data_folder, on_start=lambda: self._tell("servers", "starting PostgreSQL, NATS and S3")
        )
        self.folder = self.servers.folder
        self._owner_username = owner_username
        self._import_roots = import_roots
        self._tell: OnEvent = on_event or (lambda _phase, _message: None)
        self._roles: dict[Role, Child] = {}
        self._credentials: Credentials | None = None
        self._overrides: Overrides = {}
        self._began = False
        self._stack = AsyncExitStack()
        self._watching: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        """Address of the API."""
        return api_settings(self.servers).public_url

    @property
    def credentials(self) -> Credentials:
        """Of the owner."""
        if self._credentials is None:
            raise RuntimeError("the owner signs up at the start")
        return self._credentials

    def role(self, role: Role) -> Child:
        """A role's process."""
        return self._roles[role]

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def until(self, stop: asyncio.Event) -> None:
        """Keep everything running until `stop` is set.

        Raises:
            ChildFailed: a process died too often; quotes its log.
        """
        stopping = asyncio.create_task(stop.wait())
        try:
            pending = {stopping, *self._watching}
            while not stopping.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            stopping.cancel()

    async def _start(self) -> None:
        self._overrides = read_overrides(self.folder.settings, SETTINGS)
        await self._stack.enter_async_context(self.servers)
        self._began = True
        servers = self.servers
        self._watching = [asyncio.create_task(self._keep_server(name)) for name in get_args(ServerName)]
        self._tell("roles", "starting API, orchestrator, projections and auditor")
        # Alone and first: it creates the log that the others read.
        await self._start_role("api", api_settings(servers, self._import_roots))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._start_role("projections", projections_settings(servers)))
                group.create_task(self._start_role("auditor", auditor_settings(servers)))
                orchestrator = orchestrator_settings(servers, self._import_roots)
                group.create_task(self._start_role("orchestrator", orchestrator))
                self._credentials = await asyncio.to_thread(
                    signed_up_owner, self.folder, self.url, self._owner_username
                )
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # one remedy at a time
        self._tell("agent", "starting the agent")
        agent = agent_settings(
            servers, await asyncio.to_thread(enrolled_agent, self.folder, self.credentials)
        )
        try:
            await self._start_role("agent", agent)
        except ChildFailed:
            if not _is_shut_out(self._roles["agent"]):
                raise  # else the others go on without it, and `_keep` says so
        write_scrape_configuration(servers)
        self._watching += [asyncio.create_task(self._keep_role(role)) for role in self._roles]
        self._tell("ready", f"ready at {self.url}")

    async def _start_role(self, role: Role, decided: Message) -> None:
        settings = overridden(decided, role, self.folder.settings, self._overrides)
        settings_file = self.folder.role_settings(role)
        write_settings(settings_file, settings)
        stop_seconds = agent_stop_seconds(settings) if isinstance(settings, AgentSettings) else STOP_SECONDS
        self._roles[role] = Child(
            Program(
                name=role,
                command=[sys.executable, "-m", "kinora", role],
                environment=os.environ
                | {
                    HOME_VARIABLE: str(self.folder.root),
                    SETTINGS_VARIABLE: str(settings_file),
                    READY_VARIABLE: str(self._ready_file(role)),
                },
                stop_seconds=stop_seconds + _KILL_MARGIN_SECONDS,
            ),
            self.folder,
        )
        await self._run_role(role)

    async def _run_role(self, role: Role) -> None:
        child = self._roles[role]
        self._ready_file(role).unlink(missing_ok=True)
        await child.start()
        try:
            await child.ready(lambda: self._is_ready(role), seconds=_READY_SECONDS)
        except ChildFailed:
            await child.stop()  # it may still run and not be ready
            raise

    async def _is_ready(self, role: Role) -> bool:
        try:
            process_id = int(self._ready_file(role).read_text())
        except FileNotFoundError:
            return False
        if process_id != self._roles[role].pid:
            return False
        return role != "api" or await self._api_answers()

    async def _api_answers(self) -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
                answer = await client.get(f"{self.url}/health")
        except httpx.TransportError:
            return False
        return answer.is_success and "log_id" in answer.json()

    def _ready_file(self, role: Role) -> Path:
        return self.folder.run / f"{role}.ready"

    async def _keep_role(self, role: Role) -> None:
        await self._keep(role, lambda: self._roles[role], lambda: self._run_role(role))

    async def _keep_server(self, name: ServerName) -> None:
        await self._keep(name, lambda: self.servers.child(name), lambda: self.servers.revive(name))

    async def _keep(
        self, name: str, current: Callable[[], Child], start: Callable[[], Awaitable[None]]
    ) -> None:
        """Start it again whenever it has ended; returns when that would be in vain.

        Raises:
            ChildFailed: it dies too often.
        """
        restarts = Restarts()
        while True:
            while current().running:
                await current().bound_log()
                await asyncio.sleep(_LOOK_SECONDS)
            failure: LocalError = current().failure()
            while True:
                if _is_shut_out(current()):
                    self._tell(
                        "shut_out",
                        f"the {name} was revoked, or another node took its place: it stays stopped, and"
                        f" everything else goes on; {current().log} says how to train on this machine again",
                    )
                    return
                delay = restarts.died(time.monotonic())
                if delay is None:
                    raise ChildFailed(f"{name} keeps dying and is given up: {failure.message}")
                self._tell("died", f"{failure.message.splitlines()[0]}; starting it again in {delay:g} s")
                await asyncio.sleep(delay)
                try:
                    await start()
                except LocalError as error:
                    failure = error
                else:
                    break
            self._tell("restarted", f"{name} runs again")

    async def _stop(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        if self._roles:
            self._tell("stopping", "stopping: a running job is given back first")
        # The agent hands its job back to the others; requests need the read side until the API is gone.
        for group in (("agent",), ("api",), ("orchestrator", "projections", "auditor")):
            await asyncio.gather(*(self._roles[role].stop() for role in group if role in self._roles))
        await self._stack.aclose()
        if self._began:
            self._tell("stopped", "everything is stopped")


def _is_shut_out(child: Child) -> bool:
    return child.name == "agent" and child.exit_code == ShutOut.exit_code
