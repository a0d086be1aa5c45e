"""Nobody gets in without a token, and nobody sees another organization's things."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from command_api.auth.tokens import ADMINISTER, READ, AccessTokens, Principal
from command_api.problems import PROBLEM_JSON
from schemas.ids import Prefix, new_id
from tests.integration.api.running import Person, Service, Visit
from tests.integration.api.stories import ready_inputs, request_job

OPEN = {
    ("POST", "/api/v1/auth/signup"),
    ("POST", "/api/v1/auth/login"),
    ("POST", "/api/v1/auth/refresh"),
    ("POST", "/api/v1/auth/logout"),
    ("POST", "/api/v1/agents/join"),
    ("POST", "/api/v1/agents/{agent_id}/renew"),
    ("GET", "/api/v1/health"),
    ("GET", "/api/v1/health/live"),
    ("GET", "/api/v1/health/ready"),
    ("GET", "/api/v1/problems/{code}"),
}
"""For everybody. Whatever is not named here has to be closed."""

UNDOCUMENTED = {
    "/openapi.json",
    "/docs",
    "/api/v1/openapi.json",
    "/health",
    "/health/live",
    "/health/ready",
    "/asyncapi.json",
    "/api/v1/asyncapi.json",
    "/schemas/events/{name}.json",
}
"""For everybody, and not in the OpenAPI document."""

CLOSED_UNDOCUMENTED = {"/metrics"}

UNSCOPED = {("GET", "/api/v1/users/me")}
"""For whoever has logged in, whatever their scopes are."""

SHARED = {
    ("POST", "/api/v1/projections/{name}/rebuild"),  # of the installation, and its operator's
    ("POST", "/api/v1/projections/{name}/replay"),
    ("GET", "/api/v1/storage/collections/{collection_id}"),
    ("GET", "/api/v1/audit/heads/{number}"),  # of all organizations; test_audit tries whose tree it shows
    ("PUT", "/api/v1/secrets/{name}"),  # a name is everybody's own
}
"""With a parameter that names nothing of an organization."""

FOLLOWING = ("POST", "/api/v1/events/tickets")
"""Writes nothing that anybody reads, and is for readers."""

IDS = {
    "dataset_id": Prefix.DATASET,
    "model_id": Prefix.MODEL,
    "job_id": Prefix.JOB,
    "agent_id": Prefix.AGENT,
    "event_id": Prefix.EVENT,
    "subscription_id": Prefix.SUBSCRIPTION,
    "delivery_id": Prefix.DELIVERY,
    "user_id": Prefix.USER,
}


@dataclass(frozen=True)
class Operation:
    """One operation of the OpenAPI document."""

    method: str
    template: str
    described: dict[str, Any]

    def path(self, ids: Mapping[str, str]) -> str:
        return self.template.format_map({"name": "jobs", "collection_id": "1", "number": "1", **ids})


def operations(service: Service) -> list[Operation]:
    """Every operation that is not open."""
    return [
        Operation(method.upper(), path, described)
        for path, methods in service.app.openapi()["paths"].items()
        for method, described in methods.items()
        if (method.upper(), path) not in OPEN
    ]


def closed_routes(service: Service) -> list[tuple[str, str]]:
    """Methods and addresses of what is not open, with ids filled in."""
    ids = {name: new_id(prefix) for name, prefix in IDS.items()}
    return [(each.method, each.path(ids)) for each in operations(service)]


def served(service: Service) -> set[tuple[str, str]]:
    """Every path and kind of route that the application knows, documented or not."""

    def walk(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
        for route in routes:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                yield from walk(inner.routes, prefix + route.include_context.prefix)
            else:
                yield type(route).__name__, prefix + route.path

    return set(walk(service.app.routes))


async def test_no_route_is_outside_of_these_tests(visit: Visit) -> None:
    """What the OpenAPI document does not show is named here, one by one."""
    documented = set(visit.service.app.openapi()["paths"])
    hidden = {(kind, path) for kind, path in served(visit.service) if path not in documented}
    sockets = {path for kind, path in hidden if "WebSocket" in kind}
    assert sockets == {"/api/v1/events/ws"}  # whose doors test_feed and test_manners try
    assert {path for _, path in hidden} - sockets == UNDOCUMENTED | CLOSED_UNDOCUMENTED
    stranger = await visit.client()
    for path in CLOSED_UNDOCUMENTED:
        assert (await stranger.get(path)).status_code == 401


async def test_every_route_needs_a_scope(visit: Visit, ada: Person) -> None:
    nobody = await visit.client(visit.service.parts.tokens.issue(principal_of(ada, ())))
    ids = {name: new_id(prefix) for name, prefix in IDS.items()}
    for each in operations(visit.service):
        answer = await nobody.request(each.method, each.path(ids), json={})
        if (each.method, each.template) in UNSCOPED:
            assert answer.status_code == 200
        else:
            # Said before the body is judged, which the caller may not send at all.
            assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope"), (each, answer.text)


async def test_reading_never_is_enough_to_write(visit: Visit, ada: Person) -> None:
    reader = await visit.client(visit.service.parts.tokens.issue(principal_of(ada, READ)))
    ids = {name: new_id(prefix) for name, prefix in IDS.items()}
    for each in operations(visit.service):
        if each.method == "GET" or (each.method, each.template) == FOLLOWING:
            continue
        answer = await reader.request(each.method, each.path(ids), json={})
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope"), (each, answer.text)


async def test_every_route_is_closed_to_strangers(visit: Visit) -> None:
    stranger = await visit.client()
    routes = closed_routes(visit.service)
    assert len(routes) > 25
    for method, path in routes:
        answer = await stranger.request(method, path, json={})
        assert (answer.status_code, answer.json()["code"]) == (401, "token_missing"), (
            method,
            path,
            answer.text,
        )
        assert answer.headers["content-type"] == PROBLEM_JSON


async def test_a_stranger_s_body_is_not_read(visit: Visit) -> None:
    """Neither junk nor size nor type is looked at before the token is."""
    stranger = await visit.client()
    posts = [path for method, path in closed_routes(visit.service) if method == "POST"]
    assert len(posts) > 8
    for path in posts:
        for content, kind in ((b"{", "application/json"), (b"x", "text/plain"), (b"x" * 2**22, "text/plain")):
            answer = await stranger.post(path, content=content, headers={"content-type": kind})
            assert (answer.status_code, answer.json()["code"]) == (401, "token_missing"), path


@pytest.mark.parametrize("token", ["nonsense", "a.b.c"])
async def test_a_made_up_token_is_no_token(visit: Visit, token: str) -> None:
    client = await visit.client()
    answer = await client.get("/api/v1/users/me", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401


async def test_a_token_ends(visit: Visit, ada: Person) -> None:
    settings = visit.service.parts.settings
    pem = settings.secrets.token_private_key_pem.get_secret_value()
    an_hour_ago = AccessTokens(pem, seconds=600, clock=lambda: datetime.now(UTC) - timedelta(hours=1))
    token = an_hour_ago.issue(principal_of(ada, READ))
    answer = await (await visit.client(token)).get("/api/v1/users/me")
    assert (answer.status_code, answer.json()["code"]) == (401, "token_expired")


async def test_a_reader_may_read(visit: Visit, ada: Person) -> None:
    reader = await visit.client(visit.service.parts.tokens.issue(principal_of(ada, READ)))
    assert (await reader.get("/api/v1/jobs")).status_code == 200


async def test_what_belongs_to_others_does_not_exist(visit: Visit, ada: Person, bob: Person) -> None:
    """Every operation with an id in its address, with ids of another organization and bodies that fit."""
    inputs = await ready_inputs(visit, ada)
    job = await request_job(ada, inputs)
    agent = (await ada.post("/agents/enroll", {"name": "node"})).json()
    event = (await ada.get(f"/jobs/{job['id']}/events")).json()["data"][0]
    secret = await ada.http.put(
        "/api/v1/secrets/ada-s", json={"kind": "token", "value": "a-token-of-somewhere"}
    )
    webhook = {"name": "chat", "kind": "webhook", "url": "https://hooks.example.org/kinora"}
    subscription = (await ada.post("/event-subscriptions", webhook)).json()
    delivery = (await ada.post(f"/event-subscriptions/{subscription['id']}/test")).json()
    ids = {
        "dataset_id": inputs.dataset_id,
        "model_id": inputs.model_id,
        "job_id": job["id"],
        "agent_id": agent["id"],
        "event_id": event["id"],
        "subscription_id": subscription["id"],
        "delivery_id": delivery["id"],
        "name": "ada-s",
        "user_id": ada.user_id,
    }
    bodies = {
        "CompleteUploadBody": {"upload_id": inputs.dataset_upload_id, "files": []},
        "CredentialsBody": {},
        "DisableSubscriptionBody": {},
        "EnrolmentTokenBody": {},
        "RedeliverBody": {"from_position": 0},
        "EraseBody": {"confirm": ada.user_id},
        "RevokeAgentBody": {},
        "RotateSecretBody": {},
        "StopJobBody": {},
    }
    behind = subscription["last_position"]
    tried = 0
    for each in operations(visit.service):
        if "{" not in each.template or (each.method, each.template) in SHARED:
            continue
        path, body = each.path(ids), body_for(each, bodies)
        if each.method == "GET":
            own = await ada.http.get(path, params={"min_position": behind})
            assert own.status_code in (200, 409), (path, own.text)
            assert own.status_code != 200 or "x-projection-position" in own.headers, path
        answer = await bob.http.request(each.method, path, json=body)
        assert_absent(answer, f"{each.method} {each.template}")
        tried += 1
    assert tried > 15
    for path in ("/jobs", "/jobs/plan"):
        body = {"dataset_id": inputs.dataset_id, "model_id": inputs.model_id}
        assert_absent(await bob.post(path, body), "their inputs")
    for path in (f"/datasets/{inputs.dataset_id}", f"/models/{inputs.model_id}", f"/jobs/{job['id']}"):
        assert (await ada.get(path)).json()["status"] not in ("deleted", "cancelling", "cancelled")
    assert (await ada.get(f"/event-subscriptions/{subscription['id']}")).json()["status"] == "active"
    for path in ("/datasets", "/models", "/jobs", "/agents", "/event-subscriptions"):
        mine = {item["id"] for item in (await bob.get(path)).json()["data"]}
        assert not mine & set(ids.values())
    assert secret.status_code == 200, secret.text
    assert (await bob.get("/secrets")).json()["data"] == []
    theirs = (await bob.get("/events", params={"limit": 200})).json()["data"]
    assert {item["organization"] for item in theirs} == {bob.organization_id}
    assert (await bob.get("/events", params={"job_id": job["id"]})).json()["data"] == []


def body_for(operation: Operation, bodies: Mapping[str, object]) -> object:
    """A body that the operation takes, so that it is not the body that is refused."""
    content = operation.described.get("requestBody", {}).get("content", {})
    if not content:
        return None
    schema = content["application/json"]["schema"]
    named = str(schema.get("$ref") or schema["anyOf"][0]["$ref"]).rsplit("/", 1)[-1]
    assert named in bodies, f"{operation.template} takes a {named}: give this test one that fits"
    return bodies[named]


async def test_an_idempotency_key_answers_only_within_its_organization(
    visit: Visit, ada: Person, bob: Person
) -> None:
    body, key = {"name": "node"}, {"Idempotency-Key": new_id(Prefix.COMMAND)}
    first = await ada.post("/agents/enroll", body, headers=key)
    assert first.status_code == 201
    elsewhere = Principal(ada.user_id, bob.organization_id, bob.workspace_id, ADMINISTER)
    client = await visit.client(visit.service.parts.tokens.issue(elsewhere))
    answer = await client.post("/api/v1/agents/enroll", json=body, headers=key)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert first.json()["id"] not in answer.text


async def test_an_unknown_id_and_a_malformed_one_look_alike(ada: Person) -> None:
    for path in (f"/jobs/{new_id(Prefix.JOB)}", "/jobs/42", f"/jobs/{new_id(Prefix.MODEL)}", "/datasets/x"):
        assert_absent(await ada.get(path), path)


def assert_absent(answer: httpx.Response, what: str) -> None:
    found = answer.status_code, answer.json()["code"]
    assert found in {(404, code) for code in ("not_found", "upload_unknown", "secret_unknown")}, (
        what,
        answer.text,
    )


def principal_of(person: Person, scopes: tuple[str, ...]) -> Principal:
    return Principal(person.user_id, person.organization_id, person.workspace_id, scopes)
