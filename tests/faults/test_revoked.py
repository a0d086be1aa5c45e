"""A revoked agent ends its engine and itself for good, and the service goes on without it."""

from pathlib import Path

import httpx
import psutil
import pytest

from kinora.client import Client
from tests.faults.acts import engines_of, gone, submit, until_step
from tests.service import running_service, wait_until
from tests.system_fixtures import Registered, Samples

pytestmark = [pytest.mark.slow_process, pytest.mark.timeout(300)]


def test_a_revoked_agent_stops_computing_and_stays_stopped(samples: Samples, tmp_path: Path) -> None:
    with running_service(tmp_path) as service, service.client() as client:
        dataset = service.cli("datasets", "add", str(samples.clips), "--name", "shapes")
        model = service.cli("models", "add", str(samples.model), "--name", "tiny")
        job_id = submit(client, Registered(dataset.stdout.strip(), model.stdout.strip()), steps=5000)
        agent_id = until_step(client, job_id, 1)["agent_id"]
        agent = service.role("agent")
        (engine,) = engines_of(agent)

        client.post(f"/agents/{agent_id}/revoke", {"reason": "stolen"})

        wait_until(lambda: gone(engine) and gone(agent), seconds=15, what="the end of engine and agent")
        wait_until(lambda: _told(service.log) == 1, seconds=10, what="word of it")
        lines = (service.home / "logs" / "agent.log").read_text().splitlines()
        assert "agent_shut_out" in lines[-1]
        assert sum("report_not_stored_yet" in line for line in lines) <= 1
        assert not service.found(service.role, "agent")
        assert "0 of 0 online" in _health(client)["parts"]["agents"]["detail"]
        said = service.cli("doctor", "--no-probe", check=False)
        assert "agent local" not in said.stdout + said.stderr

        # Started again, the service comes up, and the agent still knows.
        assert service.stop() == 0
        process = service.launch()
        wait_until(lambda: _told(service.log) == 2, seconds=60, what="word of it again")
        wait_until(lambda: client.get("/users/me"), seconds=10, what="the API")
        assert process.poll() is None
        assert not service.found(service.role, "agent")
        assert not [each for each in psutil.Process(process.pid).children() if "agent" in each.cmdline()]


def _told(log: Path) -> int:
    return log.read_text().count("it stays stopped")


def _health(client: Client) -> dict[str, dict[str, dict[str, str]]]:
    answer = httpx.get(f"{client.credentials.url}/health", trust_env=False, timeout=10)
    health: dict[str, dict[str, dict[str, str]]] = answer.json()
    return health
