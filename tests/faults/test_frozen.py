"""Processes that stop without dying: frozen servers and roles, a hung engine, a zombie of an agent."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.acts import engines_of, frozen, gone, submit, until_finished, until_step
from tests.faults.observing import assert_clean, observe
from tests.faults.second_agent import second_agent
from tests.service import Service, job_events, types, wait_until
from tests.system_fixtures import LEASE_SECONDS, Registered

pytestmark = [pytest.mark.slow_process, pytest.mark.timeout(400)]

STEPS = 200
"""Enough that an attempt is still at it when its turn comes."""
SHORT_SECONDS = 2.0
"""How long a server is frozen: well within everybody's patience."""


def test_what_freezes_is_waited_for_or_replaced_and_a_zombie_is_not_believed(
    service: Service, registered: Registered, tmp_path: Path
) -> None:
    with service.client() as client, ExitStack() as stack:
        job_id = submit(client, registered, steps=STEPS)
        first_holder = until_step(client, job_id, 12)["agent_id"]

        # A hung engine: its agent goes on with its heartbeats, so no lease ever ends this.
        (hung,) = engines_of(service.role("agent"))
        hung.suspend()
        for victim in (
            *(service.role(name) for name in ("api", "projections")),
            *(service.server(name) for name in ("nats-server", "rclone", "postgres")),
        ):
            with frozen(victim):
                time.sleep(SHORT_SECONDS)
            assert client.get("/users/me")["username"]
        second = stack.enter_context(second_agent(service, client, tmp_path))
        until_step(client, job_id, 1, attempt=2)
        assert gone(hung)

        # A zombie: it sleeps through its lease, another agent takes the job, and then it wakes up.
        holder = client.get(f"/jobs/{job_id}")["agent_id"]
        agents = {first_holder: service.role("agent"), second.agent_id: second.process}
        zombie = agents[holder]
        (its_engine,) = engines_of(zombie)
        with frozen(zombie):
            heir = until_step(client, job_id, 1, attempt=3)["agent_id"]
            assert its_engine.is_running()
        wait_until(lambda: gone(its_engine), seconds=30, what="the zombie to abandon its engine")
        wait_until(
            lambda: client.get(f"/agents/{holder}")["status"] == "online",
            seconds=30,
            what="the zombie's return",
        )

        # An orchestrator that slept longer than a lease must not take anything away from anybody.
        with frozen(service.role("orchestrator")):
            time.sleep(LEASE_SECONDS * 1.2)
        view = until_finished(client, job_id)
        events = job_events(client, job_id)
        assert_clean(observe(client, service.bucket(), [job_id], all_ended=True))

    assert (view["status"], view["attempt"]) == ("succeeded", 3)
    assert heir != holder
    failed = next(event for event in events if event["type"] == "kinora.job.attempt_failed.v1")
    assert failed["data"]["code"] == "engine_silent"
    assert types(events).count("lease_expired") == 1
