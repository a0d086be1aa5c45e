"""The log over REST: pages, filters, single events, what they follow from, and all of it as a file."""

import json
from typing import Any

import httpx

from command_api.handlers.base import Context
from schemas.commands import Command
from schemas.commands.job import AdmitJob, StopJob, ValidateJob
from schemas.envelope import public_bytes, split_type, stored_bytes
from tests.integration.api.running import Person, Visit
from tests.integration.api.stories import ready_inputs, register, request_job


async def test_events_behind_a_position(visit: Visit) -> None:
    ada = await visit.sign_up()
    items = [await register(ada, "datasets", {"a": b"a"}, name) for name in ("one", "two", "three")]
    everything = (await ada.get("/events")).json()
    assert everything["log_id"].startswith("log_")
    assert everything["head"] >= items[-1]["last_position"]
    assert [event["type"] for event in everything["data"]][:3] == [
        "kinora.organization.created.v1",
        "kinora.organization.workspace_created.v1",
        "kinora.organization.member_added.v1",
    ]
    behind = (await ada.get("/events", params={"after": items[0]["last_position"]})).json()["data"]
    assert [event["subject"] for event in behind] == [items[1]["id"], items[2]["id"]]
    of_stream = (await ada.get("/events", params={"stream_id": items[1]["id"]})).json()["data"]
    assert [event["data"]["name"] for event in of_stream] == ["two"]
    types = "kinora.dataset.registered,kinora.organization.created"
    of_types = (await ada.get("/events", params={"types": types, "limit": 2})).json()
    assert [split_type(event["type"])[0] for event in of_types["data"]] == types.split(",")[::-1]
    rest = await ada.get("/events", params={"types": types, "cursor": of_types["next_cursor"]})
    assert [event["data"]["name"] for event in rest.json()["data"]] == ["two", "three"]


async def test_a_position_beyond_the_end(ada: Person) -> None:
    answer = await ada.get("/events", params={"after": 10**9})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_position")


async def test_positions_of_another_log_are_refused(visit: Visit, ada: Person) -> None:
    here = (await ada.get("/events")).json()["log_id"]
    assert (await ada.get("/events", params={"after": 10**9, "log_id": "log_other"})).status_code == 409
    assert (await ada.get("/events", params={"log_id": here})).status_code == 200
    scope = "\0".join((ada.organization_id, "/api/v1/events", "", "", ""))
    cursor = visit.service.parts.cursors.sign(scope, [1, "log_other"])
    answer = await ada.get("/events", params={"cursor": cursor})
    assert (answer.status_code, answer.json()["code"]) == (409, "log_changed")
    assert here in answer.json()["detail"]


async def test_one_event(ada: Person) -> None:
    item = await register(ada, "datasets", {"a": b"a"})
    (event,) = (await ada.get("/events", params={"stream_id": item["id"]})).json()["data"]
    answer = await ada.get(f"/events/{event['id']}")
    assert answer.json() == event
    assert event["causationid"] == item["command_id"]


async def test_activity_tells_it_in_sentences(visit: Visit) -> None:
    ada = await visit.sign_up()
    item = await register(ada, "datasets", {"a": b"a"}, "moving shapes")
    fresh = {"min_position": item["last_position"], "limit": 1}
    page = (await ada.get("/activity", params=fresh)).json()
    assert [each["position"] for each in page["data"]] == [item["last_position"]]
    assert "moving shapes" in page["data"][0]["sentence"]
    older = (await ada.get("/activity", params={"limit": 1, "cursor": page["next_cursor"]})).json()
    assert older["data"][0]["position"] < item["last_position"]
    of_stream = (await ada.get("/activity", params={"stream_id": item["id"]})).json()["data"]
    assert len(of_stream) == 1


async def test_causes_and_effects(visit: Visit, ada: Person, bob: Person) -> None:
    job = await request_job(ada, await ready_inputs(visit, ada))
    (requested,) = (await ada.get("/events", params={"job_id": job["id"]})).json()["data"]
    assert (await ada.get(f"/events/{requested['id']}/causes")).json() == {
        "data": [],
        "began_with": job["command_id"],
        "correlation_id": requested["correlationid"],
        "complete": True,
    }
    assert (await ada.get(f"/events/{requested['id']}/effects")).json()["data"] == []
    # As policies decide: of what was recorded last.
    validating = await because_of(visit, ada, requested, ValidateJob(job_id=job["id"]))
    planned, queued = await because_of(visit, ada, validating[0], admission(job["id"]))
    effects = (await ada.get(f"/events/{requested['id']}/effects")).json()
    assert effects["data"] == [*validating, planned, queued]
    assert (effects["has_more"], effects["complete"]) == (False, True)
    pages, parameters = [], {"limit": 2}
    while True:
        page = (await ada.get(f"/events/{requested['id']}/effects", params=parameters)).json()
        pages.append(page["data"])
        if not page["has_more"]:
            break
        parameters["cursor"] = page["next_cursor"]
    assert pages == [[*validating, planned], [queued]]
    causes = (await ada.get(f"/events/{queued['id']}/causes")).json()
    assert (causes["data"], causes["began_with"]) == ([validating[0], requested], job["command_id"])
    for what in ("causes", "effects"):
        assert (await bob.get(f"/events/{requested['id']}/{what}")).status_code == 404
    # What is another organization's ends the chain, although it was the cause.
    elsewhere = await register(bob, "datasets", {"a": b"a"})
    (theirs,) = (await bob.get("/events", params={"stream_id": elsewhere["id"]})).json()["data"]
    await because_of(visit, ada, theirs, StopJob(job_id=job["id"], mode="graceful", reason=""))
    (last,) = (await ada.get("/events", params={"job_id": job["id"], "after": queued["position"]})).json()[
        "data"
    ][-1:]
    causes = (await ada.get(f"/events/{last['id']}/causes")).json()
    assert (causes["data"], causes["began_with"]) == ([], theirs["id"])
    assert (await bob.get(f"/events/{theirs['id']}/effects")).json()["data"] == []


def admission(job_id: str) -> AdmitJob:
    return AdmitJob(job_id=job_id, total_steps=4, training_examples=8, held_out_examples=2, epochs=1.0)


async def because_of(
    visit: Visit, person: Person, cause: dict[str, Any], command: Command
) -> list[dict[str, Any]]:
    """The events of a command that follows from an event."""
    context = Context.system(
        "policy",
        organization_id=person.organization_id,
        workspace_id=person.workspace_id,
        causation_id=cause["id"],
    )
    before = (await person.get("/events", params={"limit": 1})).json()["head"]
    await visit.service.parts.bus.execute(command, context)
    events: list[dict[str, Any]] = (await person.get("/events", params={"after": before})).json()["data"]
    return [event for event in events if event["causationid"] == cause["id"]]


async def exported(person: Person, **parameters: Any) -> httpx.Response:
    answer = await person.get("/events/export", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer


async def test_an_export_is_the_stored_bytes_and_resumable(visit: Visit) -> None:
    ada = await visit.sign_up()
    for number in range(5):
        await register(ada, "datasets", {f"{number}": b"a"})
    whole = await exported(ada)
    lines = whole.content.splitlines(keepends=True)
    events = (await ada.get("/events", params={"limit": 200})).json()["data"]
    assert [json.loads(line) for line in lines] == events
    for line in lines:
        position, log_id, state = stored_bytes(line.rstrip(b"\n"))
        assert public_bytes(position, log_id, state) + b"\n" == line
    assert whole.headers["x-kinora-last-position"] == str(events[-1]["position"])
    assert whole.headers["content-type"].startswith("application/x-ndjson")
    middle = events[3]["position"]
    first = await exported(ada, until=middle)
    rest = await exported(ada, after=middle, log_id=whole.headers["x-kinora-log-id"])
    assert first.content + rest.content == whole.content
    assert first.headers["x-kinora-last-position"] == str(middle)
    nothing = await exported(ada, after=events[-1]["position"], until=events[-1]["position"])
    assert nothing.content == b""
    assert nothing.headers["x-kinora-last-position"] == str(events[-1]["position"])


async def test_what_cannot_be_exported(ada: Person) -> None:
    for parameters, status, code in (
        ({"after": 10**12}, 400, "bad_position"),
        ({"until": 10**12}, 400, "bad_position"),
        ({"log_id": "log_other"}, 409, "log_changed"),
    ):
        answer = await ada.get("/events/export", params=parameters)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_an_export_is_of_one_organization(ada: Person, bob: Person) -> None:
    await register(ada, "datasets", {"a": b"a"})
    theirs = [json.loads(line) for line in (await exported(bob)).content.splitlines()]
    assert {event["organization"] for event in theirs} == {bob.organization_id}
