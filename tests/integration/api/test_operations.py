"""Agents, read models and health."""

import asyncio
from uuid import uuid4

from prometheus_client.parser import text_string_to_metric_families

from command_api.handlers.base import Context
from schemas.commands.agent import MarkAgentOnline
from schemas.commands.finding import OpenFinding, ResolveFinding
from schemas.ids import Prefix, new_id
from tests.integration.api.running import Person, Visit
from tests.integration.api.stories import Agent, register


async def test_agents(visit: Visit) -> None:
    ada = await visit.sign_up()
    answer = await ada.post("/agents/enroll", {"name": "bench", "pool": "lab"})
    agent = answer.json()
    assert (answer.status_code, agent["name"], agent["pool"]) == (201, "bench", "lab")
    assert answer.headers["location"] == f"/api/v1/agents/{agent['id']}"
    fresh = {"min_position": agent["last_position"]}
    assert (await ada.get(f"/agents/{agent['id']}", params=fresh)).json()["online"] is False
    side = Agent(visit, ada, agent["id"])
    position = await side.execute(MarkAgentOnline(agent_id=agent["id"]))
    shown = (await ada.get("/agents", params={"min_position": position})).json()["data"]
    assert [(each["id"], each["online"], each["current"]) for each in shown] == [(agent["id"], True, None)]
    assert (await ada.get("/agents", params={"status": "offline"})).json()["data"] == []


async def test_read_models_can_be_listed_and_built_anew(operator: Person) -> None:
    item = await register(operator, "datasets", {"a": uuid4().bytes})
    await operator.get("/datasets", params={"min_position": item["last_position"]})
    answer = await operator.get("/projections")
    views = {view["name"]: view for view in answer.json()["data"]}
    assert set(views) == {
        "activity",
        "agents",
        "datasets",
        "findings",
        "jobs",
        "logs",
        "loss_curve",
        "models",
        "subscriptions",
    }
    assert views["datasets"]["position"] >= item["last_position"]
    assert all(view["lag"] >= 0 and view["parked"] == 0 for view in views.values())
    answer = await operator.post("/projections/datasets/rebuild")
    rebuild = answer.json()
    assert (answer.status_code, rebuild["name"]) == (202, "datasets")
    async with asyncio.timeout(20):
        while rebuild["status"] != "done":
            assert rebuild["status"] in ("requested", "running"), rebuild
            await asyncio.sleep(0.05)
            # Reads are served throughout.
            assert (await operator.get(f"/datasets/{item['id']}")).status_code == 200
            listed = (await operator.get("/projections")).json()["data"]
            rebuild = next(view for view in listed if view["name"] == "datasets")["rebuild"]
    assert rebuild["checked"]["streams"] > 0
    assert rebuild["checked"]["differing"] == []
    assert rebuild["checked"]["tables"]["datasets"]["rows"] > 0
    assert (await operator.get(f"/datasets/{item['id']}")).json()["name"] == "shapes"
    unknown = await operator.post("/projections/horoscopes/rebuild")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_view")


async def test_read_models_are_the_operators(ada: Person, operator: Person) -> None:
    for answer in (
        await ada.get("/projections"),
        await ada.post("/projections/jobs/rebuild"),
        await ada.get("/audit/findings"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope")
        assert "installation:admin" in answer.json()["detail"]
    assert "installation:admin" not in (await ada.get("/users/me")).json()["scopes"]
    assert "installation:admin" in (await operator.get("/users/me")).json()["scopes"]


async def test_findings_of_the_auditor_are_shown_until_and_after_they_are_resolved(
    visit: Visit, operator: Person, ada: Person
) -> None:
    finding_id, parts = new_id(Prefix.FINDING), visit.service.parts
    context = Context.system("auditor", organization_id=ada.organization_id)
    opened = OpenFinding(
        finding_id=finding_id,
        check="read_model",
        subject="jobs",
        about=new_id(Prefix.JOB),
        detail="jobs differs in status",
        remedy="kinora projections rebuild jobs",
    )
    await parts.bus.execute(opened, context)
    done = await parts.bus.execute(ResolveFinding(finding_id=finding_id, detail="rebuilt"), context)
    shown = (await operator.get("/audit/findings", params={"min_position": done.position})).json()
    (found,) = [each for each in shown["data"] if each["id"] == finding_id]
    assert (found["status"], found["times"], found["organization_id"]) == ("resolved", 1, ada.organization_id)
    still = (await operator.get("/audit/findings", params={"status": "open"})).json()["data"]
    assert finding_id not in {each["id"] for each in still}


async def test_health_names_every_part(visit: Visit, ada: Person) -> None:
    stranger = await visit.client()
    for path in ("/health", "/api/v1/health"):
        answer = await stranger.get(path)
        found = answer.json()
        assert answer.status_code == 200
        required = {name: part["ok"] for name, part in found["parts"].items() if part["required"]}
        assert required == {
            "api": True,
            "postgres": True,
            "object_store": True,
            "projections": True,
            "model_registry": True,
            "disk": True,
        }
        assert set(found["parts"]) - set(required) == {"nats", "agents", "gpu", "inference_engine"}
        assert found["parts"]["nats"]["ok"]
        assert found["parts"]["inference_engine"]["detail"] == "not configured"
        assert found["status"] in ("ok", "degraded"), found
        assert found["position"] > 0
        assert found["log_id"] == visit.service.parts.log.log_id
        assert found["instance_id"] == visit.service.parts.instance_id
        assert set(found["projections"]) >= {"jobs", "datasets"}


async def test_liveness_and_readiness(visit: Visit) -> None:
    stranger = await visit.client()
    live, ready = await stranger.get("/health/live"), await stranger.get("/health/ready")
    assert (live.status_code, live.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "reasons": {}})


async def test_metrics_are_for_the_operator(visit: Visit, ada: Person, operator: Person) -> None:
    stranger = await visit.client()
    assert (await stranger.get("/metrics")).status_code == 401
    assert (await ada.http.get("/metrics")).json()["code"] == "missing_scope"
    await ada.get("/jobs/job_" + "0" * 32)
    answer = await operator.http.get("/metrics")
    assert answer.status_code == 200
    samples = [
        sample
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == "kinora_http_request_seconds_count"
    ]
    seen = {(sample.labels["method"], sample.labels["route"], sample.labels["status"]) for sample in samples}
    assert ("GET", "/api/v1/jobs/{job_id}", "404") in seen
    assert not any("0" * 32 in route for _, route, _ in seen)


RECORD_NOTHING = {"jobs_plan"}
"""POSTs that only answer: repeated, they answer anew."""


async def test_the_document_is_stable_and_complete(visit: Visit) -> None:
    stranger = await visit.client()
    document = (await stranger.get("/openapi.json")).json()
    assert (await stranger.get("/api/v1/openapi.json")).json() == document
    assert document["openapi"].startswith("3.1")
    operations = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(names) == len(set(names))
    assert {"jobs_create", "jobs_stop", "datasets_upload_complete", "events_list"} <= set(names)
    assert {"ProblemDetails", "FieldError", "JobDetail"} <= set(document["components"]["schemas"])
    for method, path, operation in operations:
        assert operation["tags"], path
        assert operation["summary"], path
        for status, response in operation["responses"].items():
            if status.startswith(("4", "5")):
                assert set(response["content"]) == {"application/problem+json"}, (method, path, status)
        if "requestBody" in operation:
            assert {"400", "413", "415", "422"} <= set(operation["responses"]), (method, path)
        if operation.get("security"):
            assert {"401", "403"} <= set(operation["responses"]), (method, path)
        if method == "post" and operation["operationId"] not in RECORD_NOTHING:
            headers = {parameter["name"] for parameter in operation["parameters"]}
            assert "Idempotency-Key" in headers, path
