"""What a resource was at a position and at a time, told by its own events."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from command_api.eventlog.log import Append
from command_api.eventlog.mapper import LoggedEvent
from schemas.envelope import Metadata
from schemas.events import Event
from schemas.events.job import JobProgressed, ProgressPoint
from schemas.ids import Prefix, new_id
from tests.integration.api.running import Person, Visit
from tests.integration.api.stories import request_job
from tests.integration.api.things import Things


async def history(person: Person, job_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = (await person.get(f"/jobs/{job_id}/events", params={"limit": 200})).json()[
        "data"
    ]
    return events


async def test_a_job_at_every_position_of_its_history(ada: Person, things: Things) -> None:
    path, events = f"/jobs/{things.finished_job}", await history(ada, things.finished_job)
    now = await ada.get(path)
    statuses = []
    for event in events:
        answer = await ada.get(path, params={"at_position": event["position"]})
        found = answer.json()
        statuses.append(found["status"])
        assert set(found) == set(now.json())
        assert answer.headers["x-event-position"] == str(event["position"])
        assert answer.headers["etag"] == f'"v{event["streamversion"]}"'
        assert (found["version"], found["last_position"]) == (event["streamversion"], event["position"])
    assert list(dict.fromkeys(statuses)) == [
        "pending",
        "validating",
        "queued",
        "assigned",
        "preparing",
        "running",
        "finalizing",
        "succeeded",
    ]
    assert found == now.json(), "the last moment is now"
    saved = next(event for event in events if event["type"] == "kinora.job.checkpoint_saved.v1")
    for position, steps in ((saved["position"] - 1, []), (saved["position"], [2])):
        then = (await ada.get(path, params={"at_position": position})).json()
        assert [each["step"] for each in then["checkpoints"]] == steps

    tag = f'"v{events[3]["streamversion"]}"'
    kept = await ada.get(path, params={"at_position": events[3]["position"]}, headers={"If-None-Match": tag})
    assert (kept.status_code, kept.content) == (304, b"")


async def test_a_job_at_a_time(ada: Person, things: Things) -> None:
    path, events = f"/jobs/{things.finished_job}", await history(ada, things.finished_job)
    for place in (0, 4, len(events) - 1):
        upto = datetime.fromisoformat(events[place]["time"])
        last = max(
            number for number, each in enumerate(events) if datetime.fromisoformat(each["time"]) <= upto
        )
        # The same moment, told in another zone.
        zone = upto.astimezone().isoformat()
        for at in (events[place]["time"], zone):
            answer = await ada.get(path, params={"at": at})
            assert answer.json()["last_position"] == events[last]["position"]
    before = datetime.fromisoformat(events[0]["time"]) - timedelta(microseconds=1)
    answer = await ada.get(path, params={"at": before.isoformat()})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_what_did_not_exist_yet_is_not_found(ada: Person, things: Things) -> None:
    first = (await history(ada, things.finished_job))[0]["position"]
    answer = await ada.get(f"/jobs/{things.finished_job}", params={"at_position": first - 1})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert f"did not exist at position {first - 1}" in answer.json()["detail"]


async def test_datasets_models_and_agents(ada: Person, things: Things) -> None:
    agent = (await ada.post("/agents/enroll", {"name": "bench"})).json()
    await ada.post(f"/agents/{agent['id']}/revoke")
    revoked = (await ada.get("/events", params={"stream_id": agent["id"]})).json()["data"][-1]["position"]
    await ada.get("/agents", params={"min_position": revoked})
    for kind, identifier in (
        ("datasets", things.datasets["rejected"]),
        ("models", things.models["rejected"]),
        ("agents", agent["id"]),
    ):
        now = await ada.get(f"/{kind}/{identifier}")
        events = (await ada.get("/events", params={"stream_id": identifier, "limit": 200})).json()["data"]
        assert len(events) > 1
        first = (await ada.get(f"/{kind}/{identifier}", params={"at_position": events[0]["position"]})).json()
        assert (first["version"], set(first)) == (1, set(now.json()))
        assert first["status"] != now.json()["status"]
        last = (await ada.get(f"/{kind}/{identifier}", params={"at_position": events[-1]["position"]})).json()
        ignored = {"current"}
        assert {k: v for k, v in last.items() if k not in ignored} == {
            k: v for k, v in now.json().items() if k not in ignored
        }


async def test_what_is_deleted_now_was_there_before(ada: Person, things: Things) -> None:
    gone = things.datasets["deleted"]
    events = (await ada.get("/events", params={"stream_id": gone, "limit": 200})).json()["data"]
    before, after = ({"at_position": event["position"]} for event in events[-2:])
    assert (await ada.get(f"/datasets/{gone}")).status_code == 404
    assert (await ada.get(f"/datasets/{gone}", params=before)).json()["status"] == "uploaded"
    assert (await ada.get(f"/datasets/{gone}", params=after)).status_code == 404


async def test_moments_that_are_none(ada: Person, things: Things) -> None:
    path, head = f"/jobs/{things.finished_job}", 2**40
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    for params, pointer, says in (
        ({"at_position": 1, "at": "2026-01-01T00:00:00Z"}, "/query/at", "two moments"),
        ({"at_position": head}, "/query/at_position", f"at_position {head} is beyond the log's end"),
        ({"at_position": 0}, "/query/at_position", "it must be at least 1"),
        ({"at": tomorrow}, "/query/at", "is in the future"),
        ({"at": "2026-01-01T00:00:00"}, "/query/at", "at is"),
        ({"at": "yesterday"}, "/query/at", "at is"),
    ):
        answer = await ada.get(path, params=params)
        assert answer.status_code == 422, (params, answer.text)
        (error,) = answer.json()["errors"]
        assert error["pointer"] == pointer
        assert says in error["message"], error


async def test_another_organization_sees_no_past_either(bob: Person, things: Things) -> None:
    for path in (f"/jobs/{things.finished_job}", f"/datasets/{things.datasets['deleted']}"):
        assert (await bob.get(path)).status_code == 404
        head = (await bob.get("/events", params={"limit": 1})).headers["x-projection-position"]
        answer = await bob.get(path, params={"at_position": head})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.timeout(60)
async def test_a_stream_of_thousands_of_events(visit: Visit, ada: Person, things: Things) -> None:
    """By version, however many events there are: what counts is the fold, not the number of requests."""
    job = await request_job(ada, things.inputs)
    log, beginning = visit.service.parts.log, datetime.now(UTC)
    events = [_progress(job["id"], ada, beginning, number) for number in range(2, 3002)]
    (positions,) = log.append([Append(tuple(events))])
    for number in (0, 1499, 2999):
        answer = await ada.get(f"/jobs/{job['id']}", params={"at_position": positions[number]})
        assert (answer.json()["version"], answer.json()["step"]) == (number + 2, number + 2)


def _progress(job_id: str, person: Person, at: datetime, number: int) -> LoggedEvent:
    metadata = Metadata(
        event_id=new_id(Prefix.EVENT),
        recorded_at=at,
        organization_id=person.organization_id,
        workspace_id=person.workspace_id,
        actor="system:test",
        correlation_id=job_id,
        causation_id=job_id,
    )
    point = ProgressPoint(
        step=number,
        loss=1.0,
        learning_rate=1e-3,
        grad_norm=1.0,
        tokens=64,
        tokens_per_second=640.0,
        step_seconds=0.1,
    )
    event: Event = JobProgressed(attempt=1, step=number, total_steps=9000, epoch=0.5, points=(point,))
    return LoggedEvent(job_id, number, metadata, event)
