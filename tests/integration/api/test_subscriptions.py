"""Subscriptions of third parties: made, shown, rested, ended; secrets are shown once and kept sealed."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg

from command_api.credentials.subscriptions import WebhookSecrets
from schemas.ids import Prefix, new_id
from tests.integration.api.running import Person, Visit

WEBHOOK = {"name": "chat", "kind": "webhook", "url": "https://hooks.example.org/kinora"}
NATS = {"name": "warehouse", "kind": "nats", "filter": {"types": ["kinora.job.succeeded"]}}


async def subscribed(person: Person, body: dict[str, Any]) -> dict[str, Any]:
    answer = await person.post("/event-subscriptions", body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == f"/api/v1/event-subscriptions/{made['id']}"
    return made


async def shown(person: Person, subscription_id: str, position: int) -> dict[str, Any]:
    answer = await person.get(f"/event-subscriptions/{subscription_id}", params={"min_position": position})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_webhook_from_its_making_to_its_end(visit: Visit, ada: Person) -> None:
    made = await subscribed(ada, WEBHOOK)
    secret = made["signing_secret"]
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert made["credentials"] is made["connection"] is None
    path = f"/event-subscriptions/{made['id']}"
    assert (await shown(ada, made["id"], made["last_position"]))["status"] == "active"
    rotated = (await ada.post(f"{path}/rotate-secret", {"overlap_seconds": 3600})).json()
    assert rotated["signing_secret"] not in ("", secret)
    parts = visit.service.parts
    secrets = WebhookSecrets.from_secrets(parts.settings.secrets)
    with psycopg.connect(parts.settings.postgres.conninfo()) as connection:
        (row,) = connection.execute(
            "SELECT * FROM kinora_subscriptions WHERE subscription_id = %s", (made["id"],)
        ).fetchall()
        assert secret not in str(row)
        assert rotated["signing_secret"] not in str(row)
        log = connection.execute(
            "SELECT string_agg(encode(state, 'escape'), '') FROM kinora_events"
        ).fetchone()
        assert log is not None
        assert "whsec_" not in log[0]
    now = datetime.now(UTC)
    async with await psycopg.AsyncConnection.connect(parts.settings.postgres.conninfo()) as database:
        both = await secrets.signing(database, made["id"], now)
        assert both == (rotated["signing_secret"], secret)
        later = await secrets.signing(database, made["id"], now + timedelta(hours=2))
        assert later == (rotated["signing_secret"],)
    rested = (await ada.post(f"{path}/disable", {"reason": "maintenance"})).json()
    assert (rested["status"], rested["disabled_detail"]) == ("disabled", "maintenance")
    assert (await ada.post(f"{path}/enable")).json()["status"] == "active"
    ended = await ada.delete(path)
    assert ended.status_code == 204
    position = int(ended.headers["X-Event-Position"])
    assert (await ada.get(path, params={"min_position": position})).status_code == 404
    assert (await ada.post(f"{path}/enable")).status_code == 404
    async with await psycopg.AsyncConnection.connect(parts.settings.postgres.conninfo()) as database:
        assert await secrets.signing(database, made["id"], now) == ()


async def test_a_nats_subscriber_is_told_where_it_reads(ada: Person) -> None:
    made = await subscribed(ada, NATS)
    where, issued = made["connection"], made["credentials"]
    assert where["subjects"] == [f"kinora.v1.{ada.organization_id}.*.job.succeeded"]
    assert (where["stream"], where["inbox_prefix"]) == ("EVENTS", f"_INBOX.{made['id']}")
    assert issued["public_key"] not in (await ada.get(f"/event-subscriptions/{made['id']}")).text
    assert made["signing_secret"] is None
    assert "BEGIN NATS USER JWT" in issued["credentials"]
    seed = issued["credentials"].split("SEED-----\n")[1].split("\n")[0]
    again = await ada.post(f"/event-subscriptions/{made['id']}/credentials", {"expires_in_seconds": 60})
    assert again.status_code == 201, again.text
    assert again.json()["public_key"] != issued["public_key"]
    assert again.json()["connection"] == where
    events = (await ada.get("/events", params={"stream_id": made["id"]})).json()["data"]
    assert [event["type"].split(".")[-2] for event in events] == [
        "created",
        "credentials_issued",
        "credentials_issued",
    ]
    assert seed.startswith("SU")
    assert seed not in str(events)
    listed = (await ada.get("/event-subscriptions", params={"status": "active"})).json()["data"]
    assert made["id"] in [each["id"] for each in listed]


async def test_a_repeat_is_not_shown_the_secret(ada: Person) -> None:
    for body in (WEBHOOK, NATS):
        key = uuid4().hex
        first = await ada.post("/event-subscriptions", body, key=key)
        assert first.status_code == 201, first.text
        again = await ada.post("/event-subscriptions", body, key=key)
        assert (again.status_code, again.json()["code"]) == (409, "secret_already_issued")


async def test_where_delivery_begins(ada: Person) -> None:
    assert (await subscribed(ada, WEBHOOK | {"start": "earliest"}))["after"] == 0
    assert (await subscribed(ada, WEBHOOK | {"start": 1}))["after"] == 1
    latest = await subscribed(ada, WEBHOOK)
    assert 1 < latest["after"] < latest["last_position"]
    beyond = await ada.post("/event-subscriptions", WEBHOOK | {"start": 2**40})
    assert (beyond.status_code, beyond.json()["code"]) == (400, "bad_position")


async def test_a_filter_that_nothing_of_one_s_own_can_pass_is_refused(ada: Person, bob: Person) -> None:
    """Another organization's workspace, or a stream that never was: it would stay silent for ever."""
    for body, pointer in (
        (NATS | {"filter": {"workspace_id": bob.workspace_id}}, "/filter/workspace_id"),
        (WEBHOOK | {"filter": {"workspace_id": bob.workspace_id}}, "/filter/workspace_id"),
        (WEBHOOK | {"filter": {"stream_id": bob.organization_id}}, "/filter/stream_id"),
        (WEBHOOK | {"filter": {"stream_id": new_id(Prefix.JOB)}}, "/filter/stream_id"),
    ):
        answer = await ada.post("/event-subscriptions", body)
        (error,) = answer.json()["errors"]
        assert (answer.status_code, error["code"], error["pointer"]) == (422, "unknown_value", pointer)
        assert "does not exist" in error["message"]
    for wanted in ({"workspace_id": ada.workspace_id}, {"stream_id": ada.organization_id}):
        await subscribed(ada, WEBHOOK | {"filter": wanted})


async def test_an_organization_has_only_so_many(visit: Visit, bob: Person) -> None:
    most = visit.service.parts.settings.max_subscriptions
    with psycopg.connect(visit.service.parts.settings.postgres.conninfo()) as connection:
        connection.execute(
            "INSERT INTO kinora_subscriptions (subscription_id, organization_id)"
            " SELECT 'full_' || n, %s FROM generate_series(1, %s) AS n",
            (bob.organization_id, most),
        )
    refused = await bob.post("/event-subscriptions", WEBHOOK)
    assert (refused.status_code, refused.json()["code"]) == (409, "too_many_subscriptions")
    assert (await bob.get("/event-subscriptions")).json()["data"] == []
    with psycopg.connect(visit.service.parts.settings.postgres.conninfo()) as connection:
        connection.execute("DELETE FROM kinora_subscriptions WHERE subscription_id LIKE 'full_%'")
