"""The three embedded servers of one data folder, together."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from kinora.local.child import Child
from kinora.local.folder import DataFolder
from kinora.local.lock import FolderLock
from kinora.local.nats import NatsServer
from kinora.local.ports import LOOPBACK, Ports, kept_ports
from kinora.local.postgres import PostgresServer
from kinora.local.s3 import S3Server
from kinora.local.secrets import LocalSecrets, kept_secrets
from schemas.settings import NatsSettings, PostgresSettings, S3Settings

ServerName = Literal["postgres", "nats", "s3"]
Server = PostgresServer | NatsServer | S3Server


class EmbeddedServers:
    """Starts PostgreSQL, NATS and S3 on entry and ends them on exit; nothing of it belongs to an event loop.

    Enter it in a thread that outlives the servers (see `Child`). With `only`, the others stay away.
    `on_start` is called when the data folder is ours and the servers are about to start.
    """

    def __init__(
        self,
        data_folder: Path,
        *,
        only: Collection[ServerName] = ("postgres", "nats", "s3"),
        restoring: bool = False,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_start = on_start
        self._only = frozenset(only)
        self._restoring = restoring
        self.folder = DataFolder(data_folder.absolute())
        self._held = ExitStack()
        self._servers: dict[ServerName, Server] = {}
        self._turns: defaultdict[ServerName, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._ports: Ports | None = None
        self._secrets: LocalSecrets | None = None

    async def __aenter__(self) -> Self:
        self.folder.prepare(restoring=self._restoring)
        self._held.enter_context(FolderLock(self.folder))
        try:
            self._secrets, self._ports = kept_secrets(self.folder), kept_ports(self.folder)
            servers: dict[ServerName, Server] = {
                "postgres": PostgresServer(self.folder, self._secrets),
                "nats": NatsServer(self.folder, self._secrets, self._ports),
                "s3": S3Server(self.folder, self._secrets, self._ports),
            }
            self._servers = {name: server for name, server in servers.items() if name in self._only}
            self._on_start()
            await _all(server.start() for server in self._servers.values())
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def ports(self) -> Ports:
        if self._ports is None:
            raise RuntimeError("ports are chosen at the start")
        return self._ports

    @property
    def api_url(self) -> str:
        """Where the API of this installation is to be found."""
        return f"http://{LOOPBACK}:{self.ports.api}"

    @property
    def secrets(self) -> LocalSecrets:
        if self._secrets is None:
            raise RuntimeError("secrets are read at the start")
        return self._secrets

    @property
    def postgres(self) -> PostgresSettings:
        """As the role that owns the database."""
        return self._postgres.settings

    @property
    def postgres_superuser(self) -> PostgresSettings:
        """For making other databases."""
        return self._postgres.superuser_settings

    @property
    def nats_control(self) -> NatsSettings:
        return self._nats.settings

    @property
    def nats_store_bytes(self) -> int:
        """What all streams together may reserve."""
        return self._nats.store_bytes()

    @property
    def s3(self) -> S3Settings:
        server = self._servers["s3"]
        assert isinstance(server, S3Server)  # noqa: S101 - narrows the type
        return server.settings

    @property
    def _postgres(self) -> PostgresServer:
        server = self._servers["postgres"]
        assert isinstance(server, PostgresServer)  # noqa: S101 - narrows the type
        return server

    @property
    def _nats(self) -> NatsServer:
        server = self._servers["nats"]
        assert isinstance(server, NatsServer)  # noqa: S101 - narrows the type
        return server

    def child(self, name: ServerName) -> Child:
        """The server's process, for watching it."""
        child = self._servers[name].child
        if child is None:
            raise RuntimeError(f"{name} was never started")
        return child

    async def restart(self, name: ServerName) -> None:
        """End one server and start it again on the same address."""
        async with self._turns[name]:
            await self._servers[name].stop()
            await self._servers[name].start()

    async def revive(self, name: ServerName) -> None:
        """Start a server that has died; does nothing when somebody else just did.

        Raises:
            LocalError: when it does not become ready.
        """
        async with self._turns[name]:
            if not self.child(name).running:
                await self._servers[name].stop()
                await self._servers[name].start()

    async def _stop(self) -> None:
        try:
            await _all(server.stop() for server in self._servers.values())
            if "postgres" in self._servers:
                self._postgres.release()
        finally:
            self._held.close()


async def _all(actions: Iterable[Coroutine[None, None, None]]) -> None:
    """Do all of them to their end; raise the first failure afterwards, so that nothing goes on unseen."""
    for result in await asyncio.gather(*actions, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
