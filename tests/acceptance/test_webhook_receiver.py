"""The documented receiver, as a process of its own, against the running service."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook

from kinora.client import Client, Json
from tests.service import Service, wait_until

RECEIVER = Path(__file__).parents[2] / "docs" / "subscribers" / "webhook_receiver.py"
pytestmark = pytest.mark.slow_process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def receiving(port: int, secret: str, output: Path) -> Iterator[None]:
    """The receiver; what it prints stands in `output`."""
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(RECEIVER)],
            env=os.environ | {"WEBHOOK_SECRET": secret, "PORT": str(port)},
            stdout=file,
            stderr=subprocess.DEVNULL,
        )
    try:
        wait_until(lambda: listens(port), seconds=20, what="the receiver to listen")
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def settled(client: Client, path: str, redeliveries: int) -> Json | None:
    """The deliveries' state once nothing waits and so many redeliveries are finished."""
    state: Json = client.get(f"{path}/delivery-state")
    finished = sum(each["finished_at"] is not None for each in state["redeliveries"])
    caught_up = state["position"] == state["head"]
    return state if caught_up and not state["pending"] and finished == redeliveries else None


def test_it_has_at_most_twenty_lines() -> None:
    assert len([line for line in RECEIVER.read_text().splitlines() if line.strip()]) <= 20


def test_verified_events_arrive_once_and_a_forged_one_is_refused(service: Service, tmp_path: Path) -> None:
    port, output = free_port(), tmp_path / "events.txt"
    url = f"http://127.0.0.1:{port}/kinora"
    with service.client() as client:
        made = client.post(
            "/event-subscriptions",
            {
                "name": "receiver",
                "kind": "webhook",
                "url": url,
                "filter": {"types": ["kinora.agent.enrolled"]},
            },
        )
        path = f"/event-subscriptions/{made['id']}"
        try:
            with receiving(port, made["signing_secret"], output):
                names = [f"hooked-{number}" for number in range(5)]
                agents = [client.post("/agents/enroll", {"name": name})["id"] for name in names]
                client.post(f"{path}/test")
                wait_until(lambda: settled(client, path, 0), seconds=30, what="the deliveries")
                service.cli("subscriptions", "redeliver", made["id"], "--from", str(made["last_position"]))
                wait_until(lambda: settled(client, path, 1), seconds=30, what="the redelivery")
                forged = b'{"id":"evt_1","type":"kinora.job.succeeded.v1","subject":"job_1","data":{}}'
                signature = Webhook("whsec_" + "MTIz" * 8).sign("evt_1", datetime.now(UTC), forged.decode())
                headers = {
                    "webhook-id": "evt_1",
                    "webhook-timestamp": str(int(datetime.now(UTC).timestamp())),
                    "webhook-signature": signature,
                }
                assert httpx.post(url, content=forged, headers=headers, trust_env=False).status_code == 401
            deliveries = list(client.pages(f"{path}/deliveries"))
            refused = service.cli("subscriptions", "test", made["id"], check=False)
            assert (refused.returncode, "failed: unreachable" in refused.stderr) == (6, True)
            shown = service.cli("subscriptions", "deliveries", made["id"])
            assert "unreachable" in shown.stdout
            assert shown.stdout.count("delivered") == len(deliveries)
        finally:
            client.delete(path)
    assert {each["status"] for each in deliveries} == {"delivered"}
    assert sorted(each["attempt_count"] for each in deliveries) == [1, 2, 2, 2, 2, 2]
    lines = output.read_text().splitlines()
    printed = [line.split()[1] for line in lines if line.startswith("kinora.agent.enrolled.v1")]
    assert sorted(printed) == sorted(agents)
    assert [line.split()[0] for line in lines if "enrolled" not in line] == ["kinora.subscription.test.v1"]
