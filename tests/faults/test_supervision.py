"""`kinora up` revives what dies, leaves nothing behind when it is killed, and keeps its addresses."""

import json
from pathlib import Path

import psutil
import pytest

from kinora.client import ApiError, Json
from tests.service import Service, wait_until


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def owner(service: Service) -> Json | None:
    """Whom the service says its owner is; None while it asks for patience."""
    try:
        with service.client() as client:
            return client.get("/users/me")
    except ApiError as error:
        if error.status != 503:
            raise
        return None


@pytest.mark.slow_process
@pytest.mark.timeout(300)
def test_the_dead_are_revived_and_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    service = Service(tmp_path / "home", tmp_path / "up.log")
    service.start()
    assert service.process is not None
    try:
        addresses = json.loads((service.home / "ports.json").read_text())
        for name in ("nats-server", "rclone", "postgres"):
            killed = service.server(name)
            killed.kill()
            wait_until(lambda k=killed: gone(k), seconds=10, what=f"the end of {name}")
        for name in ("nats", "s3", "postgres"):
            said = f"{name} runs again"
            wait_until(lambda s=said: s in service.log.read_text(), seconds=60, what=said)
        me = wait_until(lambda: owner(service), seconds=30, what="an answer from the revived database")

        family = psutil.Process(service.process.pid).children(recursive=True)
        assert len(family) >= 7
        service.process.kill()
        service.process.wait()
        service.start()  # at once, while the orphans are still ending

        wait_until(lambda: all(map(gone, family)), seconds=60, what="the end of every orphan")
        assert json.loads((service.home / "ports.json").read_text()) == addresses
        with service.client() as client:
            assert client.get("/users/me") == me
            assert len(list(client.pages("/agents"))) == 1
        assert service.stop() == 0
    finally:
        if service.process.poll() is None:
            service.stop()
