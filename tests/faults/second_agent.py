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

from kinora.client import Client
from tests.service import Service, wait_until


@dataclass(frozen=True)
class SecondAgent:
    """A running agent."""

    agent_id: str
    process: psutil.Process


@contextmanager
def second_agent(service: Service, client: Client, folder: Path) -> Iterator[SecondAgent]:
    """Enrolled, started and online."""
    enrolled = client.post("/agents/enroll", {"name": "second"})
    issued = client.post(f"/agents/{enrolled['id']}/enrolment-token")
    home = folder / "second-agent"
    service.cli("agents", "join", client.credentials.url, issued["token"], "--folder", str(home))
    settings_file = home / "agent.json"
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
