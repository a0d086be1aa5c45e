"""Every process is killed in turn under running jobs; then the supervisor is; then all stops and starts."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from command_api.messaging.connection import connect
from command_api.settings import OrchestratorSettings
from kinora.client import Client
from schemas.subjects import EVENTS_STREAM, POSITION_HEADER, PREVIOUS_POSITION_HEADER
from tests.faults.acts import (
    ENDED,
    Watcher,
    gone,
    submit,
    until_checkpoint,
    until_finished,
    until_step,
)
from tests.faults.history import Json
from tests.faults.observing import assert_clean, observe, whole_log
from tests.service import KINORA, Service, job_events, types, wait_until
from tests.system_fixtures import Registered

pytestmark = [pytest.mark.slow_process, pytest.mark.timeout(400)]

STEPS = 150


class Jobs:
    """Jobs one after the other, so that there is always one that a fault can hit."""

    def __init__(self, client: Client, registered: Registered) -> None:
        self._client = client
        self._registered = registered
        self.submitted: list[str] = []

    def running(self) -> str:
        """A job that is taking steps."""
        if self.submitted:
            job = self._client.get(f"/jobs/{self.submitted[-1]}")
            if job["status"] not in ENDED and job["step"] < STEPS - 30:
                return str(until_step(self._client, job["id"], 1, attempt=job["attempt"])["id"])
        return self.fresh(STEPS)

    def fresh(self, steps: int) -> str:
        """Another job, that has just begun to take steps."""
        self.submitted.append(submit(self._client, self._registered, steps=steps))
        return str(until_step(self._client, self.submitted[-1], 2)["id"])


def kill(process: psutil.Process) -> None:
    process.kill()
    wait_until(lambda: gone(process), seconds=10, what=f"the end of {process}")


@contextmanager
def standby_orchestrator(service: Service, log: Path) -> Iterator[psutil.Process]:
    """A second orchestrator with the settings of the first, waiting for its turn."""
    settings = json.loads((service.home / "run" / "orchestrator.settings.json").read_text())
    settings["metrics"] = None  # its port is taken
    own = log.with_suffix(".json")
    own.write_text(json.dumps(settings))
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "kinora", "orchestrator"],
            env=os.environ | {"KINORA_SETTINGS_FILE": str(own)},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: "waiting for it to end" in log.read_text(), seconds=30, what="the standby to wait")
        assert '"ready"' not in log.read_text()
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_every_process_is_killed_in_turn_and_no_job_notices_more_than_it_must(
    service: Service, registered: Registered, tmp_path: Path
) -> None:
    with service.client() as client:
        start = whole_log(client)[-1]["position"]
        jobs = Jobs(client, registered)
        with Watcher(service, start) as watcher:
            standby_log = tmp_path / "standby.log"
            with standby_orchestrator(service, standby_log):
                jobs.running()
                kill(service.role("orchestrator"))
                wait_until(lambda: '"ready"' in standby_log.read_text(), seconds=30, what="the take-over")
                jobs.running()
            for name in ("api", "projections"):
                jobs.running()
                kill(service.role(name))
                wait_until(lambda n=name: service.found(service.role, n), seconds=30, what=f"another {name}")
            for name in ("nats-server", "rclone", "postgres"):
                jobs.running()
                kill(service.server(name))
                wait_until(
                    lambda n=name: service.found(service.server, n), seconds=60, what=f"another {name}"
                )
            untouched = list(jobs.submitted)
            for each in untouched:  # what is shown may lag behind after so many faults
                until_finished(client, each)
            job_id = jobs.fresh(STEPS)
            (engine,) = service.engines()
            kill(engine)
            assert until_step(client, job_id, 2, attempt=2)["status"] == "running"
            agent, engines = service.role("agent"), service.engines()
            kill(agent)
            assert engines
            wait_until(lambda: all(map(gone, engines)), seconds=20, what="the engine to end")
            views = [until_finished(client, each) for each in jobs.submitted]
            history = observe(client, service.bucket(), jobs.submitted, all_ended=True)
            seen = watcher.until(history.log[-1]["position"])
        assert_clean(observe(client, service.bucket(), jobs.submitted, seen=[seen], all_ended=True))

    assert [view["status"] for view in views] == ["succeeded"] * len(views)
    # Only engine and agent take an attempt with them; everything else may die unnoticed.
    assert [view["attempt"] for view in views] == [1] * len(untouched) + [3]
    ends = {"attempt_failed", "attempt_released", "lease_expired"}
    engine_died, agent_died = [name for name in types(job_events_of(service, job_id)) if name in ends]
    assert engine_died == "attempt_failed"
    # Given back by the next agent, unless that one took longer than a lease to start.
    assert agent_died in ("attempt_released", "lease_expired")
    asyncio.run(check_published(service))


def job_events_of(service: Service, job_id: str) -> list[Json]:
    with service.client() as client:
        return job_events(client, job_id)


async def check_published(service: Service) -> None:
    """EVENTS holds every position once, in order, each naming the one before it."""
    settings = OrchestratorSettings.model_validate_json(
        (service.home / "run" / "orchestrator.settings.json").read_text()
    )
    async with connect(settings.nats, "fault test") as client:
        js = client.jetstream()
        state = (await js.stream_info(EVENTS_STREAM)).state
        previous = 0
        for sequence in range(state.first_seq, state.last_seq + 1):
            headers = (await js.get_msg(EVENTS_STREAM, seq=sequence)).headers or {}
            assert int(headers[PREVIOUS_POSITION_HEADER]) == previous
            assert int(headers[POSITION_HEADER]) > previous
            previous = int(headers[POSITION_HEADER])
    assert state.messages == state.last_seq - state.first_seq + 1


def test_nothing_outlives_its_supervisor_and_everything_goes_on_at_the_next_start(
    service: Service, registered: Registered
) -> None:
    ports = json.loads((service.home / "ports.json").read_text())
    assert service.process is not None
    with service.client() as client:
        job_id = submit(client, registered, steps=STEPS)
        until_checkpoint(client, job_id)
        me, agents = client.get("/users/me"), len(list(client.pages("/agents")))

    second = subprocess.run(
        [KINORA, "up"],
        env=service.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert f"in use by process {service.process.pid}" in second.stderr
    assert "KINORA_HOME" in second.stderr

    assert service.role("agent").is_running(), "the second one harmed the first"
    assert service.stop() == 0
    assert service.engines() == []

    service.start()
    family = psutil.Process(service.process.pid).children(recursive=True)
    assert len(family) >= 8
    service.process.kill()
    service.process.wait()
    service.start()  # at once, while the orphans are still ending
    wait_until(lambda: all(map(gone, family)), seconds=60, what="the end of every orphan")
    assert json.loads((service.home / "ports.json").read_text()) == ports

    with service.client() as client:
        assert client.get("/users/me") == me
        assert len(list(client.pages("/agents"))) == agents
        view = until_finished(client, job_id)
        assert view["status"] == "succeeded"
        assert "attempt_released" in types(job_events(client, job_id))
        assert_clean(observe(client, service.bucket(), [job_id], all_ended=True))
