"""Another agent beside the one of `kinora up`: a real process with a work folder and rights of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import SecretStr

from command_api.nats_auth.keys import new_seed, public_key
from command_api.nats_auth.users import Issuer
from command_api.settings import OrchestratorSettings
from kinora.client import Client
from kinora.local.private_file import revealed_json, write_private
from schemas.settings import NatsUser
from tests.service import Service, wait_until
from trainer_agent.settings import AgentSettings


@dataclass(frozen=True)
class SecondAgent:
    """A running agent."""

    agent_id: str
    process: psutil.Process


@contextmanager
def second_agent(service: Service, client: Client, folder: Path) -> Iterator[SecondAgent]:
    """Enrolled, started and online."""
    enrolled = client.post("/agents/enroll", {"name": "second"})
    control = OrchestratorSettings.model_validate_json(
        (service.home / "run" / "orchestrator.settings.json").read_text()
    )
    seed = new_seed("user")
    signed = Issuer(control.nats).agent(
        public_key(seed), enrolled["organization_id"], enrolled["id"], enrolled["pool"]
    )
    settings = AgentSettings(
        agent_id=enrolled["id"],
        organization_id=enrolled["organization_id"],
        pool=enrolled["pool"],
        name=enrolled["name"],
        nats=NatsUser(url=control.nats.url, jwt=signed.jwt, seed=SecretStr(seed)),
        work_folder=folder / "second-agent",
    )
    settings_file = folder / "second-agent.json"
    write_private(settings_file, revealed_json(settings))
    with (folder / "second-agent.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kinora", "agent"],
            env=os.environ | {"KINORA_SETTINGS_FILE": str(settings_file)},
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(
            lambda: client.get(f"/agents/{enrolled['id']}")["status"] == "online",
            seconds=60,
            what="the second agent",
        )
        yield SecondAgent(enrolled["id"], psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
