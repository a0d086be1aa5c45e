"""The delivery log's routes; what deliveries do is told in tests/integration/webhooks."""

from typing import Any

import pytest

from schemas.ids import Prefix, new_id
from tests.integration.api.running import Person, Visit

WEBHOOK = {"name": "chat", "kind": "webhook", "url": "https://hooks.example.org/kinora"}
NATS = {"name": "warehouse", "kind": "nats"}


async def path_of(person: Person, body: dict[str, Any]) -> str:
    answer = await person.post("/event-subscriptions", body)
    assert answer.status_code == 201, answer.text
    return f"/event-subscriptions/{answer.json()['id']}"


async def test_a_test_waits_in_the_log_of_deliveries(visit: Visit, ada: Person) -> None:
    path = await path_of(ada, WEBHOOK)
    key = new_id(Prefix.COMMAND)
    answer = await ada.post(f"{path}/test", key=key)
    asked = answer.json()
    assert (answer.status_code, asked["status"], asked["position"]) == (202, "pending", None)
    assert answer.headers["Location"] == f"/api/v1{path}/deliveries/{asked['id']}"
    assert (await ada.post(f"{path}/test", key=key)).json()["id"] == asked["id"]
    listed = (await ada.get(f"{path}/deliveries")).json()
    assert [each["id"] for each in listed["data"]] == [asked["id"]]
    assert (await ada.get(f"{path}/deliveries", params={"status": "failed,delivered"})).json()["data"] == []
    shown = (await ada.get(f"{path}/deliveries/{asked['id']}")).json()
    assert (shown["attempts"], shown["event_type"]) == ([], "kinora.subscription.test")
    again = await ada.post(f"{path}/deliveries/{asked['id']}/redeliver")
    assert (again.status_code, again.json()["id"]) == (202, asked["id"])
    for number in range(3):
        await ada.post(f"{path}/test", key=f"{key}{number}")
    page = (await ada.get(f"{path}/deliveries", params={"limit": 3})).json()
    assert page["has_more"]
    rest = await ada.get(f"{path}/deliveries", params={"limit": 3, "cursor": page["next_cursor"]})
    assert len(page["data"]) == 3
    assert len(rest.json()["data"]) == 1
    state = (await ada.get(f"{path}/delivery-state")).json()
    assert (state["pending"], state["failures"], state["redeliveries"]) == (4, 0, [])


async def test_redelivery_is_asked_for_by_positions(visit: Visit, ada: Person) -> None:
    path = await path_of(ada, WEBHOOK)
    head = (await ada.get(f"{path}/delivery-state")).json()["head"]
    answer = await ada.post(f"{path}/redeliver", {"from_position": 1})
    asked = answer.json()
    assert (answer.status_code, asked["from_position"]) == (202, 1)
    assert asked["until_position"] >= head
    shown = (await ada.get(f"{path}/delivery-state")).json()["redeliveries"]
    assert [each["id"] for each in shown] == [asked["id"]]
    for body, refused in (
        ({"from_position": head + 10_000}, (400, "bad_position")),
        ({"from_position": 5, "until_position": 4}, (422, "invalid_request")),
        ({"from_position": -1}, (422, "invalid_request")),
        ({}, (422, "invalid_request")),
    ):
        answer = await ada.post(f"{path}/redeliver", body)
        assert (answer.status_code, answer.json()["code"]) == refused, (body, answer.text)


async def test_a_nats_subscription_has_no_deliveries(visit: Visit, ada: Person) -> None:
    path = await path_of(ada, NATS)
    for answer in (
        await ada.get(f"{path}/deliveries"),
        await ada.get(f"{path}/delivery-state"),
        await ada.post(f"{path}/test"),
        await ada.post(f"{path}/redeliver", {"from_position": 0}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "subscription_of_other_kind")


async def test_unknown_deliveries_and_filters(visit: Visit, ada: Person) -> None:
    path = await path_of(ada, WEBHOOK)
    unknown = f"{path}/deliveries/{new_id(Prefix.DELIVERY)}"
    assert (await ada.get(unknown)).status_code == 404
    assert (await ada.post(f"{unknown}/redeliver")).status_code == 404
    wrong = await ada.get(f"{path}/deliveries", params={"status": "lost"})
    assert (wrong.status_code, wrong.json()["errors"][0]["code"]) == (422, "unknown_value")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://10.0.0.1/hooks", "address_refused"),
        ("http://127.0.0.1:8000/", "url_not_https"),
        ("https://hooks.example.org:22/", "port_refused"),
        ("https://ada:secret@hooks.example.org/", "url_holds_secret"),
    ],
)
async def test_receivers_that_could_not_be_reached_are_refused_at_once(
    ada: Person, url: str, code: str
) -> None:
    answer = await ada.post("/event-subscriptions", WEBHOOK | {"url": url})
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert "secret@" not in answer.text
