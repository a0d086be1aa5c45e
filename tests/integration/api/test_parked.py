"""Parked streams, over the API and by command, until what broke them is put right."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from command_api.eventlog.log import Append
from command_api.eventlog.mapper import LoggedEvent, canonical_state
from kinora.cli.app import app
from schemas.envelope import Metadata
from schemas.events.job import JobProgressed
from schemas.ids import Prefix, new_id
from tests.integration.api.running import PASSWORD, Person, Visit
from tests.stories import requested


@dataclass
class Broken:
    """A job whose first event is one that only a later one could be, until it is put right."""

    job_id: str
    position: int
    right: LoggedEvent
    conninfo: str

    def put_right(self) -> None:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            connection.execute(
                "UPDATE kinora_events SET topic = %s, state = %s WHERE notification_id = %s",
                [self.right.event.TYPE, canonical_state(self.right), self.position],
            )


@pytest.fixture
async def broken(visit: Visit, operator: Person) -> AsyncIterator[Broken]:
    job_id = new_id(Prefix.JOB)
    metadata = Metadata(
        event_id=new_id(Prefix.EVENT),
        recorded_at=datetime.now(UTC),
        organization_id=operator.organization_id,
        workspace_id=operator.workspace_id,
        actor="system:test",
        correlation_id=job_id,
        causation_id=job_id,
    )
    wrong = JobProgressed(attempt=1, step=1, total_steps=2, epoch=0.5, points=())
    parts = visit.service.parts
    ((position,),) = parts.log.append([Append((LoggedEvent(job_id, 1, metadata, wrong),))])
    right = LoggedEvent(job_id, 1, metadata, requested())
    made = Broken(job_id, position, right, parts.settings.postgres.conninfo())
    yield made
    made.put_right()
    await operator.post("/projections/jobs/replay")


async def test_a_bad_event_delays_its_own_job_until_it_is_replayed(operator: Person, broken: Broken) -> None:
    seen = await operator.get("/jobs", params={"min_position": broken.position})
    assert broken.job_id not in {job["id"] for job in seen.json()["data"]}
    parked = (await operator.get("/projections/parked", params={"view": "jobs"})).json()["data"]
    (waiting,) = [each for each in parked if each["stream_id"] == broken.job_id]
    assert (waiting["view"], waiting["first_position"], waiting["events"]) == ("jobs", broken.position, 1)
    assert waiting["error"].startswith("MissingRow: ")
    listed = (await operator.get("/projections")).json()["data"]
    assert {view["name"]: view["parked"] for view in listed}["jobs"] == 1

    body = {"stream_id": broken.job_id}
    failed = (await operator.post("/projections/jobs/replay", body)).json()
    assert (failed["replayed"], failed["events"]) == ([], 0)
    assert [each["stream_id"] for each in failed["still_parked"]] == [broken.job_id]

    broken.put_right()
    done = (await operator.post("/projections/jobs/replay", body)).json()
    assert (done["replayed"], done["still_parked"], done["events"]) == ([broken.job_id], [], 1)
    assert (await operator.get(f"/jobs/{broken.job_id}")).json()["status"] == "pending"
    assert (await operator.get("/projections/parked")).json()["data"] == []
    again = await operator.post("/projections/jobs/replay", body)
    assert (again.status_code, again.json()["code"]) == (404, "not_parked")
    assert (await operator.post("/projections/jobs/replay")).json()["replayed"] == []


async def test_pages_of_parked_streams(operator: Person, broken: Broken) -> None:
    await operator.get("/jobs", params={"min_position": broken.position})
    await operator.get("/agents", params={"min_position": broken.position})
    page = (await operator.get("/projections/parked", params={"limit": 1})).json()
    assert [each["stream_id"] for each in page["data"]] == [broken.job_id]
    assert (page["has_more"], page["next_cursor"]) == (False, None)


async def test_views_that_are_none(operator: Person) -> None:
    for answer in (
        await operator.get("/projections/parked", params={"view": "horoscopes"}),
        await operator.post("/projections/horoscopes/replay"),
        await operator.post("/projections/horoscopes/rebuild"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_view")
        assert "there are jobs, loss_curve" in answer.json()["detail"]
    answer = await operator.post("/projections/jobs/replay", {"stream_id": "job_1"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/stream_id")


async def test_parked_streams_are_the_operators(ada: Person) -> None:
    """They are of all organizations."""
    for answer in (await ada.get("/projections/parked"), await ada.post("/projections/jobs/replay")):
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope")
        assert "installation:admin" in answer.json()["detail"]


async def test_the_command_line(
    visit: Visit, operator: Person, broken: Broken, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    for name, value in (
        ("KINORA_HOME", str(tmp_path)),
        ("KINORA_URL", visit.service.url),
        ("KINORA_USERNAME", operator.username),
        ("KINORA_PASSWORD", PASSWORD),
    ):
        monkeypatch.setenv(name, value)
    await operator.get("/jobs", params={"min_position": broken.position})

    async def kinora(*arguments: str) -> tuple[int, str]:
        result = await asyncio.to_thread(CliRunner().invoke, app, ["projections", *arguments])
        return result.exit_code, result.output

    code, said = await kinora("parked")
    assert code == 0
    assert broken.job_id in said
    assert "MissingRow" in said
    # In a process of its own: here the service, on its thread, writes to the same standard output.
    command = [sys.executable, "-m", "kinora", "projections", "parked", "jobs", "--json"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    assert [each["stream_id"] for each in json.loads(done.stdout)] == [broken.job_id]
    assert (await kinora("replay"))[0] == 2
    assert (await kinora("replay", "jobs", "--all"))[0] == 2
    code, said = await kinora("replay", "jobs", broken.job_id)
    assert (code, "still parked: jobs" in said) == (1, True)
    broken.put_right()
    code, said = await kinora("replay", "--all")
    assert (code, "1 streams are followed again" in said) == (0, True), said
    assert "Nothing is parked" in (await kinora("parked"))[1]
    code, said = await kinora("replay", "jobs", broken.job_id)
    assert (code, "not_parked" in said) == (4, True)
    code, said = await kinora("replay", "horoscopes")
    assert (code, "unknown_view" in said) == (4, True)
