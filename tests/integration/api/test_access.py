"""Nobody gets in without a token, and nobody sees another organization's things."""

from datetime import UTC, datetime, timedelta

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
IDS = {
    "dataset_id": Prefix.DATASET,
    "model_id": Prefix.MODEL,
    "job_id": Prefix.JOB,
    "agent_id": Prefix.AGENT,
    "event_id": Prefix.EVENT,
}


def closed_routes(service: Service) -> list[tuple[str, str]]:
    """Every operation of the OpenAPI document that is not open, with ids filled in."""
    routes = []
    for path, operations in service.app.openapi()["paths"].items():
        for method in operations:
            if (method.upper(), path) not in OPEN:
                filled = path.replace("{name}", "jobs")
                for name, prefix in IDS.items():
                    filled = filled.replace("{" + name + "}", new_id(prefix))
                assert "{" not in filled, f"unknown parameter in {path}"
                routes.append((method.upper(), filled))
    return routes


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


async def test_a_reader_may_not_write(visit: Visit, ada: Person) -> None:
    reader = await visit.client(visit.service.parts.tokens.issue(principal_of(ada, READ)))
    assert (await reader.get("/api/v1/jobs")).status_code == 200
    for path, body in (
        ("/api/v1/jobs", {"dataset_id": new_id(Prefix.DATASET), "model_id": new_id(Prefix.MODEL)}),
        ("/api/v1/agents/enroll", {"name": "node"}),
        ("/api/v1/projections/jobs/rebuild", None),
    ):
        answer = await reader.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope"), path


async def test_what_belongs_to_others_does_not_exist(visit: Visit, ada: Person, bob: Person) -> None:
    inputs = await ready_inputs(visit, ada)
    job = await request_job(ada, inputs)
    agent = (await ada.post("/agents/enroll", {"name": "node"})).json()
    event = (await ada.get(f"/jobs/{job['id']}/events")).json()["data"][0]
    position = agent["last_position"]
    for path in (
        f"/datasets/{inputs.dataset_id}",
        f"/models/{inputs.model_id}",
        f"/models/{inputs.model_id}/download",
        f"/jobs/{job['id']}",
        f"/jobs/{job['id']}/events",
        f"/jobs/{job['id']}/metrics",
        f"/jobs/{job['id']}/logs",
        f"/jobs/{job['id']}/checkpoints",
        f"/jobs/{job['id']}/adapter",
        f"/agents/{agent['id']}",
        f"/events/{event['metadata']['event_id']}",
    ):
        own = await ada.get(path, params={"min_position": position})
        assert own.status_code in (200, 409), (path, own.text)
        assert_absent(await bob.get(path), path)
    upload = {"upload_id": inputs.dataset_upload_id, "files": []}
    for path, body in (
        (f"/datasets/{inputs.dataset_id}/upload", None),
        (f"/datasets/{inputs.dataset_id}/upload/complete", upload),
        (f"/models/{inputs.model_id}/upload", None),
        (f"/models/{inputs.model_id}/upload/complete", upload),
        (f"/jobs/{job['id']}/stop", {}),
        ("/jobs", {"dataset_id": inputs.dataset_id, "model_id": inputs.model_id}),
    ):
        assert_absent(await bob.post(path, body), path)
    for path in (f"/datasets/{inputs.dataset_id}", f"/models/{inputs.model_id}"):
        assert_absent(await bob.delete(path), path)
        assert (await ada.get(path)).status_code == 200
    for path in ("/datasets", "/models", "/jobs", "/agents"):
        mine = {item["id"] for item in (await bob.get(path)).json()["data"]}
        assert not mine & {inputs.dataset_id, inputs.model_id, job["id"], agent["id"]}
    theirs = (await bob.get("/events", params={"limit": 200})).json()["data"]
    assert {item["metadata"]["organization_id"] for item in theirs} == {bob.organization_id}
    assert (await bob.get("/events", params={"job_id": job["id"]})).json()["data"] == []


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
    assert (answer.status_code, answer.json()["code"]) in ((404, "not_found"), (404, "upload_unknown")), (
        what,
        answer.text,
    )


def principal_of(person: Person, scopes: tuple[str, ...]) -> Principal:
    return Principal(person.user_id, person.organization_id, person.workspace_id, scopes)
