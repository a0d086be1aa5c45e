"""Readers who pinned a version get it, also of events that a newer release wrote."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from schemas.events import REGISTRY
from schemas.events.dataset import DatasetRegistered
from schemas.ids import Prefix, id_uuid, new_id
from tests.integration.api.following import following
from tests.integration.api.running import Person, Visit
from tests.integration.api.stories import register

PIN = f"{DatasetRegistered.TYPE}.v1"


@pytest.fixture
def downcast() -> Iterator[None]:
    """What the newer release would bring along: how to make its version 2 into version 1."""
    step = (DatasetRegistered.TYPE, 2, 1)

    @REGISTRY.downcaster(DatasetRegistered.TYPE, 2)
    def _title_was_name(data: dict[str, Any]) -> dict[str, Any]:
        return {**{key: value for key, value in data.items() if key != "title"}, "name": data["title"]}

    yield
    REGISTRY._casts.pop(step)


async def written_by_a_newer_release(visit: Visit, person: Person) -> str:
    """The registration of a dataset, once more for another one and in a version 2."""
    item = await register(person, "datasets", {"a": b"a"}, "newer")
    other, event_id = new_id(Prefix.DATASET), new_id(Prefix.EVENT)
    with psycopg.connect(visit.service.parts.settings.postgres.conninfo()) as connection:
        (row,) = connection.execute(
            "SELECT event_id, convert_from(state, 'UTF8') FROM kinora_events WHERE stream_id = %s",
            [item["id"]],
        ).fetchall()
        state = row[1].replace('"name":', '"title":').replace(f'"{PIN}"', f'"{DatasetRegistered.TYPE}.v2"')
        state = state.replace(item["id"], other).replace(row[0], event_id)
        connection.execute(
            """
            INSERT INTO kinora_events (originator_id, originator_version, topic, state, event_id, stream_id,
                   organization_id, workspace_id, actor, correlation_id, causation_id, recorded_at)
            SELECT %s, 1, topic, %s, %s, %s, organization_id, workspace_id, actor, correlation_id,
                   causation_id, recorded_at
              FROM kinora_events WHERE event_id = %s
            """,
            (id_uuid(other), state.encode(), event_id, other, row[0]),
        )
        connection.execute("NOTIFY kinora_events")
    return other


@pytest.mark.usefixtures("downcast")
async def test_pages_and_feeds_give_the_pinned_version(visit: Visit) -> None:
    ada = await visit.sign_up()
    stream_id = await written_by_a_newer_release(visit, ada)
    asked = {"stream_id": stream_id}
    (stored,) = (await ada.get("/events", params=asked)).json()["data"]
    assert (stored["type"], stored["data"]["title"]) == (f"{DatasetRegistered.TYPE}.v2", "newer")
    assert "storedtype" not in stored
    (pinned,) = (await ada.get("/events", params=asked | {"pinned": PIN})).json()["data"]
    assert (pinned["type"], pinned["storedtype"]) == (PIN, stored["type"])
    assert pinned["data"]["name"] == "newer"
    assert pinned == {**stored, **{key: pinned[key] for key in ("type", "storedtype", "data")}}

    async with following(visit, ada) as follower:
        # Both from the same tail, so that neither gets what was made for the other.
        for name, pins in (("plain", []), ("pinned", [PIN]), ("again", [])):
            await follower.subscribe("earliest", name, filter=asked, pinned=pins)
            (frame,) = await follower.events(1)
            assert frame["event"] == (pinned if pins else stored), name
            assert frame["sub"] == name
    async with ada.http.stream(
        "GET", "/api/v1/events/stream", params=asked | {"from": "earliest", "pinned": PIN}
    ) as stream:
        async for line in stream.aiter_lines():
            if line.startswith('data: {"position"'):
                assert json.loads(line.removeprefix("data: ")) == pinned
                break


@pytest.mark.parametrize("pin", ["kinora.job.exploded.v1", f"{DatasetRegistered.TYPE}.v9", "nonsense"])
async def test_a_version_that_never_was_is_refused(visit: Visit, ada: Person, pin: str) -> None:
    for path in ("/events", "/events/stream"):
        answer = await ada.get(path, params={"pinned": pin})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "unknown_event_version")
    async with following(visit, ada) as follower:
        await follower.subscribe("earliest", pinned=[pin])
        refused = await follower.until("error")
        assert refused[-1]["code"] == "unknown_event_version"
