"""One real job, seen from outside: its trace from the request to the engine, metrics that move, logs
without secrets that name the job in every process."""

import json
import re
import secrets
from itertools import pairwise

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kinora.client import Json
from tests.otlp import ReceivedSpan
from tests.service import Service, wait_until
from tests.system_fixtures import Registered

pytestmark = pytest.mark.timeout(300)

Sample = tuple[str, frozenset[tuple[str, str]]]


class Scraper:
    """Reads the metrics of every role as the installation's own scrape configuration says."""

    def __init__(self, service: Service) -> None:
        self.token = (service.home / "run" / "metrics.token").read_text()
        text = (service.home / "run" / "prometheus.yml").read_text()
        roles = re.findall(r"job_name: kinora-(\w+)", text)
        addresses = re.findall(r'targets: \["([^"]+)"\]', text)
        self.addresses = dict(zip(roles, addresses, strict=True))

    def samples(self, role: str) -> dict[Sample, float]:
        answer = httpx.get(
            f"http://{self.addresses[role]}/metrics",
            headers={"Authorization": f"Bearer {self.token}"},
            trust_env=False,
            timeout=10,
        )
        assert answer.status_code == 200, answer.text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    def total(self, role: str, name: str, **labels: str) -> float:
        wanted = set(labels.items())
        return sum(
            value for (found, given), value in self.samples(role).items() if found == name and wanted <= given
        )


@pytest.fixture(scope="module")
def scraper(service: Service) -> Scraper:
    return Scraper(service)


@pytest.fixture(scope="module")
def traced(service: Service, registered: Registered, scraper: Scraper) -> Json:
    """A job that was requested inside of somebody's trace, while another one trained; and what moved."""
    trace_id = secrets.token_hex(16)
    steps = scraper.total("agent", "kinora_training_step_seconds_count")
    succeeded = scraper.total("orchestrator", "kinora_jobs_ended_total", outcome="succeeded")
    with service.client() as client:
        body = {"dataset_id": registered.dataset_id, "model_id": registered.model_id}
        first = client.post("/jobs", {**body, "hyperparameters": {"max_steps": 12, "batch_size": 4}})
        wait_until(
            lambda: client.get(f"/jobs/{first['id']}")["status"] != "queued", seconds=60, what="a job at work"
        )
        requested = httpx.post(
            f"{client.credentials.url}/api/v1/jobs",
            json={**body, "hyperparameters": {"max_steps": 4, "batch_size": 4, "held_out_fraction": 0.1}},
            headers={
                "Authorization": f"Bearer {client.token()}",
                "traceparent": f"00-{trace_id}-{'cd' * 8}-01",
                "X-Request-ID": f"traced-{trace_id[:8]}",
            },
            trust_env=False,
            timeout=30,
        )
        assert requested.status_code == 202, requested.text
        second = requested.json()["id"]
        wait_until(
            lambda: scraper.total("orchestrator", "kinora_queue_depth", lane="train") == 1,
            seconds=30,
            what="one job in the queue",
        )
        waited = scraper.total("orchestrator", "kinora_queue_oldest_wait_seconds", lane="train")
        for job_id in (first["id"], second):
            wait_until(
                lambda j=job_id: client.get(f"/jobs/{j}")["status"] == "succeeded",
                seconds=120,
                what="the jobs' end",
            )
    return {
        "job_id": second,
        "trace_id": trace_id,
        "steps_before": steps,
        "succeeded_before": succeeded,
        "waited": waited,
    }


@pytest.fixture(scope="module")
def spans(service: Service, traced: Json) -> dict[str, ReceivedSpan]:
    receiver = service.receiver
    wait_until(
        lambda: (
            {"train", "attempt train", "command ReportAttempt"} <= set(receiver.named(traced["trace_id"]))
        ),
        seconds=30,
        what="the trace's last spans",
    )
    return dict(receiver.named(traced["trace_id"]))


def test_one_trace_leads_from_the_request_to_the_engine(
    service: Service, traced: Json, spans: dict[str, ReceivedSpan]
) -> None:
    found = spans
    chain = [
        ("train", "kinora-agent"),
        ("run engine", "kinora-agent"),
        ("attempt train", "kinora-agent"),
        ("claim", "kinora-orchestrator"),
        ("ask for work", "kinora-agent"),
        ("command AdmitJob", "kinora-orchestrator"),
    ]
    for (name, service_name), (parent, _) in pairwise(chain):
        assert found[name].service == service_name
        assert found[name].parent_id == found[parent].span_id, (name, parent)
    by_id = {span.span_id: span for span in service.receiver.spans if span.trace_id == traced["trace_id"]}
    span = found["train"]
    path = [span.name]
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        path.append(span.name)
    assert path[-1] == "POST /api/v1/jobs"
    assert path[-2] == "command RequestJob"
    assert span.parent_id == "cd" * 8
    assert span.service == "kinora-api"
    assert found["publish kinora.job.requested"].parent_id == found["command RequestJob"].span_id
    assert found["train"].attributes["kinora.step"] == "4"
    assert {"stage inputs", "load model", "inject adapters", "evaluate", "store adapter"} <= set(found)
    assert found["command ReportAttempt"].parent_id in {
        each.span_id for each in by_id.values() if each.name.startswith("process ")
    }


def test_every_event_of_the_job_belongs_to_the_trace(service: Service, traced: Json) -> None:
    with service.client() as client:
        events = list(client.pages(f"/jobs/{traced['job_id']}/events"))

    assert {event["traceparent"].split("-")[1] for event in events} == {traced["trace_id"]}


def test_metrics_move_with_the_work(traced: Json, scraper: Scraper) -> None:
    assert traced["waited"] >= 0
    wait_until(
        lambda: scraper.total("orchestrator", "kinora_queue_depth", lane="train") == 0,
        seconds=10,
        what="an empty queue",
    )
    assert scraper.total("agent", "kinora_training_step_seconds_count") == traced["steps_before"] + 16
    ended = scraper.total("orchestrator", "kinora_jobs_ended_total", outcome="succeeded")
    assert ended == traced["succeeded_before"] + 2
    assert scraper.total("orchestrator", "kinora_agents", state="online") == 1
    assert scraper.total("orchestrator", "kinora_orchestrator_active") == 1
    assert scraper.total("agent", "kinora_memory_bytes", device="cpu") > 2**28
    assert scraper.total("agent", "kinora_agent_stored_bytes_total", purpose="adapter") > 0
    assert scraper.total("api", "kinora_commands_total", command="RequestJob", outcome="done") >= 2
    assert scraper.total("api", "kinora_http_request_seconds_count", route="/api/v1/jobs", method="POST") >= 2
    assert scraper.total("projections", "kinora_projection_events_total", view="jobs") > 0
    wait_until(
        lambda: scraper.total("projections", "kinora_projection_lag_positions") == 0,
        seconds=10,
        what="projections that have caught up",
    )


@pytest.mark.parametrize("role", ["orchestrator", "projections", "auditor", "agent"])
def test_roles_tell_their_health_to_anybody_and_their_metrics_to_the_scraper(
    scraper: Scraper, role: str
) -> None:
    address = f"http://{scraper.addresses[role]}"

    assert httpx.get(f"{address}/metrics", trust_env=False).status_code == 401
    for path in ("live", "ready"):
        assert httpx.get(f"{address}/health/{path}", trust_env=False).json() == {"status": "ok", "role": role}


def log_lines(service: Service, role: str) -> list[Json]:
    text = "".join(file.read_text() for file in (service.home / "logs").glob(f"{role}.log*"))
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_is_json_and_names_its_job_attempt_request_and_trace(
    service: Service, traced: Json
) -> None:
    of_agent = [line for line in log_lines(service, "agent") if line.get("job_id") == traced["job_id"]]
    assert {line["attempt"] for line in of_agent} == {1}
    assert {line["trace_id"] for line in of_agent} == {traced["trace_id"]}
    requests = [
        line
        for line in log_lines(service, "api")
        if line.get("trace_id") == traced["trace_id"] and line["event"] == "request"
    ]
    assert [(line["route"], line["status"]) for line in requests] == [("/api/v1/jobs", 202)]
    assert requests[0]["request_id"] == f"traced-{traced['trace_id'][:8]}"
    assert requests[0]["organization_id"].startswith("org_")
    for role in ("orchestrator", "projections"):
        assert {line["role"] for line in log_lines(service, role)} == {role}


def test_no_secret_gets_into_a_log_or_a_span(service: Service, traced: Json) -> None:
    username, password = f"canary-{secrets.token_hex(4)}", f"canary {secrets.token_urlsafe(12)}"
    with service.client() as client:
        base = f"{client.credentials.url}/api/v1"
        with httpx.Client(trust_env=False, timeout=20) as http:
            signed_up = http.post(
                f"{base}/auth/signup",
                json={"username": username, "email": f"{username}@example.org", "password": password},
            ).json()
            http.post(f"{base}/auth/login", json={"username": username, "password": password + "x"})
            logged_in = http.post(
                f"{base}/auth/login", json={"username": username, "password": password}
            ).json()
            fresh = http.post(
                f"{base}/auth/refresh", json={"refresh_token": logged_in.get("refresh_token", "")}
            ).json()
            bad = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJjYW5hcnkifQ.Y2FuYXJ5c2lnbmF0dXJl"
            http.get(f"{base}/jobs?access_token={bad}", headers={"Authorization": f"Bearer {bad}"})
        planted = {password, bad, client.token(), client.credentials.password.get_secret_value()}
        for answer in (signed_up, logged_in, fresh):
            planted |= {str(answer[name]) for name in ("access_token", "refresh_token") if answer.get(name)}
    kept = json.loads((service.home / "secrets.json").read_text())
    public = {"instance_id", "s3_access_key"}
    planted |= {value for name, value in kept.items() if name not in public and isinstance(value, str)}
    planted.add((service.home / "run" / "metrics.token").read_text())
    assert len(planted) > 8

    files = [file for file in (service.home / "logs").iterdir() if file.is_file()]
    assert {"api.log", "orchestrator.log", "projections.log", "agent.log"} <= {file.name for file in files}
    found = {file.name: file.read_text(errors="replace") for file in files}
    found |= {"spans": "".join(body.decode("latin-1") for body in service.receiver.bodies)}
    for name, text in found.items():
        # Not the secret itself into the report of the test, but what stands before it.
        places = [text[max(0, at - 80) : at] for secret in planted if (at := text.find(secret)) >= 0]
        assert places == [], name
        assert not re.search(r"X-Amz-Signature=(?!\[redacted\])", text), name
