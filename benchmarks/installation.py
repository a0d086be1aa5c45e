"""A Kinora of one's own for a measurement: real servers and roles in a temporary folder, gone afterwards."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from command_api.settings import RateSettings
from kinora.cli.progress import add_folder
from kinora.client import Client, Credentials
from kinora.demo.service import running_service
from kinora.local.child import Child, Program
from kinora.local.role_settings import api_settings, orchestrator_settings, projections_settings
from kinora.local.servers import EmbeddedServers
from kinora.roles import READY_VARIABLE, STOP_SECONDS, Role
from kinora.settings import HOME_VARIABLE, SETTINGS_VARIABLE, write_settings
from kinora.sources import dataset_paths, model_paths
from schemas.base import Message

console = Console(stderr=True)
"""Talk goes to stderr; stdout belongs to the figures."""

UNLIMITED: Mapping[Role, Mapping[str, object]] = {
    "api": {
        "rates": RateSettings(
            general="", anonymous="", uploads="", job_creation="", event_replay="", feeds=10_000
        )
    }
}
"""What is measured is the service, not its quotas."""
_READY_SECONDS = 60.0


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one measurement."""
    with tempfile.TemporaryDirectory(prefix="kinora-benchmark-") as folder:
        yield Path(folder)


def make_samples(folder: Path, *, clips: int = 40) -> tuple[Path, Path]:
    """Folders with sample clips and a tiny base model."""
    clips_folder, model_folder = folder / "clips", folder / "model"
    for module, target, more in (
        ("qlora_engine.data.shapes", clips_folder, ["--clips", str(clips)]),
        ("qlora_engine.models.tiny", model_folder, []),
    ):
        command = [sys.executable, "-m", module, str(target), *more]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return clips_folder, model_folder


@dataclass(frozen=True, slots=True)
class Seeded:
    """An installation's data folder where a dataset and a model are ready to be trained on."""

    folder: Path
    credentials: Credentials
    dataset_id: str
    model_id: str
    agent_id: str


def seed(folder: Path) -> Seeded:
    """Start everything once, have the samples validated by the real agent, and stop everything."""
    clips, model = make_samples(folder)
    data = folder / "data"
    with (
        running_service(data, owner="bench", console=console) as credentials,
        Client(credentials, patience_seconds=30) as client,
    ):
        dataset = add_folder(
            client, "datasets", clips, dataset_paths(clips), name="", description="", wait=True
        )
        base = add_folder(client, "models", model, model_paths(model), name="", description="", wait=True)
        (agent,) = client.pages("/agents")
    return Seeded(data, credentials, dataset["id"], base["id"], agent["id"])


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """Servers and the control plane's roles, without an agent: what is queued stays queued."""

    servers: EmbeddedServers
    url: str


@asynccontextmanager
async def control_plane(
    folder: Path,
    changes: Mapping[Role, Mapping[str, object]] | None = None,
    *,
    roles: Collection[Role] = ("api", "projections", "orchestrator"),
) -> AsyncIterator[ControlPlane]:
    """Run `roles` on a data folder, with other settings where `changes` say so."""
    async with EmbeddedServers(folder) as servers:
        standard: dict[Role, Message] = {
            "api": api_settings(servers),
            "projections": projections_settings(servers),
            "orchestrator": orchestrator_settings(servers),
        }
        running: list[Child] = []
        try:
            for role in roles:
                settings = standard[role]
                changed = settings.model_copy(update=dict((changes or {}).get(role, {})))
                running.append(await _started(servers, role, changed))
            yield ControlPlane(servers, api_settings(servers).public_url)
        finally:
            await asyncio.gather(*(child.stop() for child in reversed(running)))


async def _started(servers: EmbeddedServers, role: Role, settings: Message) -> Child:
    folder = servers.folder
    settings_file, ready_file = folder.run / f"{role}.settings.json", folder.run / f"{role}.ready"
    write_settings(settings_file, settings)
    ready_file.unlink(missing_ok=True)
    environment = os.environ | {
        HOME_VARIABLE: str(folder.root),
        SETTINGS_VARIABLE: str(settings_file),
        READY_VARIABLE: str(ready_file),
    }
    program = Program(
        name=role,
        command=[sys.executable, "-m", "kinora", role],
        environment=environment,
        stop_seconds=STOP_SECONDS + 5,
    )
    child = Child(program, folder)
    await child.start()

    async def says_ready() -> bool:
        return ready_file.exists() and ready_file.read_text().strip() == str(child.pid)

    await child.ready(says_ready, seconds=_READY_SECONDS)
    return child
