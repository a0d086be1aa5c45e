"""Processes die, servers restart, clients drop: the job ends once, and its history has no hole."""

import json
import signal
from collections import Counter

import pytest

from kinora.client import Client, Json
from kinora.feed import follow
from tests.service import Service, job_events, types, wait_until
from tests.system_fixtures import Registered

pytestmark = pytest.mark.timeout(240)

TERMINAL = {"succeeded", "failed", "stopped"}


def submit(client: Client, registered: Registered, *, steps: int = 60) -> str:
    body = {
        "dataset_id": registered.dataset_id,
        "model_id": registered.model_id,
        "hyperparameters": {
            "max_steps": steps,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "checkpoint_every_steps": 10,
            "held_out_fraction": 0.2,
            "max_new_tokens": 8,
        },
    }
    return str(client.post("/jobs", body)["id"])


def until_step(client: Client, job_id: str, step: int) -> None:
    wait_until(lambda: client.get(f"/jobs/{job_id}")["step"] >= step, seconds=120, what=f"step {step}")


def until_checkpoint(client: Client, job_id: str) -> None:
    wait_until(
        lambda: "checkpoint_saved" in types(job_events(client, job_id)),
        seconds=120,
        what="a stored checkpoint",
    )


def until_finished(client: Client, job_id: str) -> Json:
    done = {"succeeded", "failed", "cancelled"}
    wait_until(lambda: client.get(f"/jobs/{job_id}")["status"] in done, seconds=180, what="the job's end")
    return client.get(f"/jobs/{job_id}")


def check_history(events: list[Json]) -> None:
    """Nothing lost, nothing doubled, attempts in order, one end."""
    assert [event["version"] for event in events] == list(range(1, len(events) + 1))
    positions = [event["position"] for event in events]
    assert positions == sorted(set(positions))
    ends = [name for name in types(events) if name in TERMINAL]
    assert len(ends) == 1
    assert types(events)[-1] in TERMINAL
    queued = [event["payload"]["attempt"] for event in events if event["type"] == "kinora.job.queued"]
    assert queued == list(range(1, len(queued) + 1))
    current = 0
    for event in events:
        if event["type"] == "kinora.job.queued":
            current = event["payload"]["attempt"]
        elif "attempt" in event["payload"]:
            assert event["payload"]["attempt"] == current, "a report of an old attempt became an event"


def test_a_killed_agent_leaves_no_engine_and_the_job_goes_on_from_its_checkpoint(
    service: Service, registered: Registered
) -> None:
    with service.client() as client:
        job_id = submit(client, registered)
        until_checkpoint(client, job_id)
        agent, engines = service.role("agent"), service.engines()
        assert engines
        agent.send_signal(signal.SIGKILL)
        wait_until(lambda: not any(e.is_running() for e in engines), seconds=20, what="the engine to end")
        view = until_finished(client, job_id)
        events = job_events(client, job_id)

    check_history(events)
    assert view["status"] == "succeeded"
    assert view["attempt"] == 2
    resumed = next(
        event["payload"]
        for event in events
        if event["type"] == "kinora.job.training_started" and event["payload"]["attempt"] == 2
    )
    checkpoints = [
        event["payload"]["step"]
        for event in events
        if event["type"] == "kinora.job.checkpoint_saved" and event["payload"]["attempt"] == 1
    ]
    assert resumed["start_step"] == max(checkpoints) > 0


@pytest.mark.parametrize("role", ["orchestrator", "projections", "api"])
def test_a_killed_control_process_comes_back_and_the_job_never_notices(
    service: Service, registered: Registered, role: str
) -> None:
    with service.client() as client:
        job_id = submit(client, registered, steps=50)
        until_step(client, job_id, 5)
        victim = service.role(role)
        victim.send_signal(signal.SIGKILL)
        wait_until(
            lambda: not victim.is_running() or victim.status() == "zombie", seconds=10, what="its death"
        )
        view = until_finished(client, job_id)
        events = job_events(client, job_id)

    check_history(events)
    assert view["status"] == "succeeded"
    assert view["attempt"] == 1


def test_nats_restarts_under_a_running_job(service: Service, registered: Registered) -> None:
    with service.client() as client:
        job_id = submit(client, registered, steps=50)
        until_step(client, job_id, 5)
        server = service.server("nats-server")
        server.send_signal(signal.SIGKILL)
        wait_until(
            lambda: not server.is_running() or server.status() == "zombie", seconds=10, what="its death"
        )
        view = until_finished(client, job_id)
        events = job_events(client, job_id)

    check_history(events)
    assert view["status"] == "succeeded"
    assert view["attempt"] == 1


def test_a_feed_client_that_drops_and_resumes_sees_every_event_once_and_in_order(
    service: Service, registered: Registered
) -> None:
    seen: list[int] = []
    with service.client() as client:
        job_id = submit(client, registered, steps=40)
        finished = False
        while not finished:
            # A new connection for every three events: most drops happen while the job is running.
            frames = follow(client, start=seen[-1] if seen else "earliest", event_filter={"job_id": job_id})
            for frame in frames:
                if frame["type"] != "event":
                    continue
                seen.append(int(frame["position"]))
                finished = frame["event"]["type"].removeprefix("kinora.job.") in TERMINAL
                if finished or len(seen) % 3 == 0:
                    break
            frames.close()  # type: ignore[attr-defined]
        expected = [event["position"] for event in job_events(client, job_id)]

    assert seen == expected
    assert max(Counter(seen).values()) == 1


def test_ctrl_c_and_up_again_goes_on_where_it_was(service: Service, registered: Registered) -> None:
    ports = json.loads((service.home / "ports.json").read_text())
    with service.client() as client:
        job_id = submit(client, registered, steps=120)
        until_checkpoint(client, job_id)
    assert service.stop() == 0
    assert service.engines() == []

    service.start()

    assert json.loads((service.home / "ports.json").read_text()) == ports
    with service.client() as client:
        view = until_finished(client, job_id)
        events = job_events(client, job_id)
    check_history(events)
    assert view["status"] == "succeeded"
    assert view["attempt"] == 2
    assert "attempt_released" in types(events)
