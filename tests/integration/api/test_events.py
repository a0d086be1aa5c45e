"""The log over REST: pages, filters, single events."""

from schemas.envelope import split_type
from tests.integration.api.running import Person, Visit
from tests.integration.api.stories import register


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
