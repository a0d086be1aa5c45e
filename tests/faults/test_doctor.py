"""`kinora doctor` on a service in which several things are broken at once: each is found, with its remedy."""

import asyncio
import json
import secrets
import signal
import time

import psycopg
import pytest

from command_api.messaging.connection import connect
from command_api.settings import OrchestratorSettings
from kinora.client import Json
from schemas.subjects import REPORTS_STREAM, dead_letter_subject
from tests.service import Service, wait_until
from tests.system_fixtures import Registered

pytestmark = pytest.mark.timeout(300)

PARKED = """
INSERT INTO projections.parked_streams
       (view, generation, stream_id, first_position, last_position, events, error)
SELECT view, generation, %s, 1, 1, 1, 'ValidationError: broken on purpose'
  FROM projections.views
 WHERE view = 'jobs'
"""


def findings(service: Service) -> dict[str, Json]:
    """What the doctor finds that is not well, by name."""
    said = json.loads(service.cli("doctor", "--json", "--no-probe", check=False).stdout)
    return {each["name"]: each for each in said if each["verdict"] != "ok"}


async def put_aside(settings: OrchestratorSettings) -> None:
    async with connect(settings.nats, "test") as client:
        headers = {"Kinora-Reason": "1 validation errors: broken on purpose"}
        await client.jetstream().publish(dead_letter_subject(REPORTS_STREAM), b"{", headers=headers)


async def purge(settings: OrchestratorSettings) -> None:
    async with connect(settings.nats, "test") as client:
        await client.jetstream().purge_stream("DEAD_LETTERS")


def until_well(service: Service, seconds: float) -> None:
    """Return once the doctor finds nothing wrong; what is still wrong then is told.

    Other tests of the same service enrol agents that never come: those are warnings, and not this test's.
    """
    deadline = time.monotonic() + seconds
    while wrong := {
        name: each for name, each in findings(service).items() if "never heard of" not in each["detail"]
    }:
        assert time.monotonic() < deadline, wrong


def test_each_of_several_faults_is_found_and_explained(service: Service, registered: Registered) -> None:
    text = (service.home / "run" / "orchestrator.settings.json").read_text()
    settings = OrchestratorSettings.model_validate_json(text)
    asyncio.run(put_aside(settings))
    with psycopg.connect(settings.postgres.conninfo(), autocommit=True) as connection:
        connection.execute(PARKED, [registered.dataset_id])
    store, agent = service.server("rclone"), service.role("agent")
    store.send_signal(signal.SIGSTOP)
    agent.send_signal(signal.SIGSTOP)
    try:
        found = findings(service)
    finally:
        store.send_signal(signal.SIGCONT)
        agent.send_signal(signal.SIGCONT)
        with psycopg.connect(settings.postgres.conninfo(), autocommit=True) as connection:
            connection.execute("DELETE FROM projections.parked_streams WHERE error LIKE '%on purpose'")
        asyncio.run(purge(settings))

    assert {"dead letters", "parked", "object_store", "agent health"} <= set(found), found
    assert "broken on purpose" in found["dead letters"]["detail"]
    assert registered.dataset_id in found["parked"]["detail"]
    assert "rebuild jobs" in found["parked"]["remedy"]
    assert "s3.log" in found["object_store"]["remedy"]
    assert "agent.log" in found["agent health"]["remedy"]
    assert all(each["remedy"] for each in found.values())
    until_well(service, 60)


def test_an_event_that_is_not_as_its_leaf_is_found_until_it_is_put_right(service: Service) -> None:
    """The finding itself joins the tree, which then contradicts its head: that is told and put right, too."""
    text = (service.home / "run" / "orchestrator.settings.json").read_text()
    settings = OrchestratorSettings.model_validate_json(text)
    name = f"quiet-{secrets.token_hex(6)}"
    with service.client() as client:
        body = {"username": name, "email": f"{name}@example.org", "password": secrets.token_hex(12)}
        organization = client.post("/auth/signup", body)["organization_id"]

        def open_finding() -> Json | None:
            found = client.get("/audit/findings", status="open")["data"]
            return next((each for each in found if each["about"] == organization), None)

        with psycopg.connect(settings.postgres.conninfo(), autocommit=True) as connection:
            query = (
                "SELECT hashes FROM kinora_merkle_tiles JOIN kinora_head_trees USING (organization)"
                " WHERE organization = %s"
            )
            (kept,) = wait_until(
                lambda: connection.execute(query, [organization]).fetchone(),
                seconds=30,
                what="a head over its tree",
            )
            change = (
                "UPDATE kinora_merkle_tiles SET hashes = overlay(hashes placing %s from 1)"
                " WHERE organization = %s AND level = 0"
            )
            connection.execute(change, [bytes(32), organization])
            try:
                wait_until(open_finding, seconds=60, what="the finding")
                said = findings(service)["proofs"]
            finally:
                connection.execute(change, [bytes(kept)[:32], organization])
        assert organization in said["detail"]
        assert "restore" in said["remedy"]
        wait_until(
            lambda: not client.get("/audit/findings", status="open")["data"], seconds=60, what="its end"
        )
    everything = json.loads(service.cli("doctor", "--json", "--no-probe", check=False).stdout)
    assert [each["verdict"] for each in everything if each["name"] == "proofs"] == ["ok"]


def test_a_read_model_that_differs_from_the_log_is_found_until_it_is_rebuilt(
    service: Service, registered: Registered
) -> None:
    text = (service.home / "run" / "orchestrator.settings.json").read_text()
    settings = OrchestratorSettings.model_validate_json(text)
    with psycopg.connect(settings.postgres.conninfo(), autocommit=True) as connection:
        connection.execute(
            "UPDATE view_datasets.datasets SET status = 'rejected' WHERE id = %s", [registered.dataset_id]
        )
    found = wait_until(lambda: findings(service).get("auditor"), seconds=90, what="the auditor's finding")
    assert registered.dataset_id in found["detail"]
    assert "datasets differs in status" in found["detail"]
    assert found["remedy"] == "kinora projections rebuild datasets"
    service.cli("projections", "rebuild", "datasets")
    until_well(service, 90)
