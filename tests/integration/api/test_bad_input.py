"""Bad requests, line by line: status, code, what the answer names, and a log that knows nothing of them."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from command_api.auth.tokens import READ, AccessTokens, Principal
from schemas.ids import Prefix, new_id
from tests.integration.api.running import PASSWORD, Person, Service, Visit, fresh_secrets
from tests.integration.api.stories import declared, sha256
from tests.integration.api.things import Things

TABLES = ("kinora_events", "kinora_commands", "kinora_unique_names", "kinora_uploads", "kinora_upload_files")


# ---- the log before and after -------------------------------------------------------------------


def recorded(service: Service) -> dict[str, int]:
    """How many rows each table has that a command may write, and the log's head."""
    with psycopg.connect(service.parts.settings.postgres.conninfo()) as connection:
        counts = {
            table: int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # type: ignore[arg-type, index]
            for table in TABLES
        }
        head = connection.execute("SELECT max(notification_id) FROM kinora_events").fetchone()
    return counts | {"head": int(head[0])}  # type: ignore[index]


# ---- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One bad request by `ada`, unless it says whose token it carries."""

    method: str
    path: str | Callable[[Things], str]
    body: Any = None
    status: int = 422
    code: str = "invalid_request"
    names: tuple[str, ...] = ()
    """Parts of the answer: the field, the value, the remedy."""
    headers: dict[str, str] | Callable[[Things], dict[str, str]] = field(default_factory=dict)
    content: bytes | None = None
    token: Callable[[Visit, Person], str | None] = lambda visit, ada: ada.token


def minted(**changes: Any) -> Callable[[Visit, Person], str]:
    """A token that the service's own key signs, at another time or for other scopes."""

    def token(visit: Visit, ada: Person) -> str:
        pem = changes.get("pem") or visit.service.parts.settings.secrets.token_private_key_pem
        clock = changes.get("clock", lambda: datetime.now(UTC))
        tokens = AccessTokens(pem.get_secret_value(), seconds=600, clock=clock)
        scopes = changes.get("scopes", READ)
        return tokens.issue(Principal(ada.user_id, ada.organization_id, ada.workspace_id, scopes))

    return token


def an_hour_ago() -> datetime:
    return datetime.now(UTC) - timedelta(hours=1)


def job(**changes: Any) -> Callable[[Things], dict[str, Any]]:
    return lambda things: (
        {
            "dataset_id": things.inputs.dataset_id,
            "model_id": things.inputs.model_id,
        }
        | changes
    )


def job_on(kind: str, state: str) -> Callable[[Things], dict[str, Any]]:
    def body(things: Things) -> dict[str, Any]:
        other = (things.datasets if kind == "dataset_id" else things.models)[state]
        return job(**{kind: other})(things)

    return body


def parameter(**changes: Any) -> Callable[[Things], dict[str, Any]]:
    return job(hyperparameters=changes)


def dataset(**changes: Any) -> dict[str, Any]:
    """A good declaration of two files, but for the changes to its second one."""
    files = declared({"a.mp4": b"a", "b.mp4": b"b"})
    files[1] |= changes
    return {"name": "bad", "files": files}


def signup(**changes: Any) -> dict[str, Any]:
    name = f"eve-{uuid4().hex[:10]}"
    return {"username": name, "email": f"{name}@example.org", "password": PASSWORD} | changes


NOBODY: Callable[[Visit, Person], None] = lambda visit, ada: None  # noqa: E731
JSON = {"content-type": "application/json"}
JOB = "/hyperparameters/"

WHO = {
    "no token": Case("GET", "/jobs", status=401, code="token_missing", token=NOBODY),
    "a made-up token": Case("GET", "/jobs", status=401, code="token_invalid", token=lambda *_: "a.b.c"),
    "an expired token": Case(
        "GET", "/jobs", status=401, code="token_expired", token=minted(clock=an_hour_ago)
    ),
    "a token of another service": Case(
        "GET",
        "/jobs",
        status=401,
        code="token_invalid",
        token=minted(pem=fresh_secrets().token_private_key_pem),
    ),
    "a token without the scope": Case(
        "POST", "/jobs", job(), 403, "missing_scope", ("jobs:write",), token=minted()
    ),
    "a wrong password": Case(
        "POST", "/auth/login", {"username": "nobody", "password": "wrong"}, 401, "wrong_credentials"
    ),
    "an unknown refresh token": Case(
        "POST", "/auth/refresh", {"refresh_token": "x" * 40}, 401, "token_invalid", ("log in",)
    ),
    "a short password": Case("POST", "/auth/signup", signup(password="short-1"), names=("/password", "10")),
    "a likely password": Case(
        "POST", "/auth/signup", signup(password="password123"), names=("/password", "several words")
    ),
    "a name with strange letters": Case(
        "POST", "/auth/signup", signup(username="\u0430da"), names=("/username", "letters a to z")
    ),
    "an address without domain": Case(
        "POST",
        "/auth/signup",
        signup(email="eve"),
        names=("/email", 'email is \\"eve\\"', "name@example.org"),
    ),
    "a field too many": Case(
        "POST", "/auth/signup", signup(mail="x"), names=('no field \\"mail\\"; did you mean email?',)
    ),
}

DECLARATIONS = {
    "no files": Case(
        "POST", "/datasets", {"name": "x", "files": []}, names=("/files", "0 items", "at least 1")
    ),
    "only empty files": Case(
        "POST",
        "/datasets",
        {"name": "x", "files": declared({"a.mp4": b""})},
        names=("/files", "size_limit", "1 to"),
    ),
    "more than the limit": Case(
        "POST",
        "/datasets",
        dataset(size_bytes=2**40),
        names=("/files", "size_limit", str(2**40 + 1), f"1 to {2**40}"),
    ),
    "a path outside": Case(
        "POST", "/datasets", dataset(path="../b.mp4"), names=("/files/1/path", "../b.mp4")
    ),
    "an absolute path": Case("POST", "/models", dataset(path="/etc/passwd"), names=("/files/1/path", "/etc")),
    "a path with backslashes": Case("POST", "/models", dataset(path="a\\b"), names=("forward slashes",)),
    "a path twice": Case(
        "POST", "/datasets", dataset(path="a.mp4"), names=("/files/1/path", "a.mp4 is declared twice")
    ),
    "no hash": Case("POST", "/datasets", dataset(sha256="XY"), names=("/files/1/sha256", '\\"XY\\"')),
    "a negative size": Case(
        "POST", "/datasets", dataset(size_bytes=-1), names=("size_bytes is -1", "at least 0")
    ),
    "a size that contradicts": Case(
        "POST", "/datasets", dataset(sha256=sha256(b"a"), size_bytes=7), names=("/files/1/size_bytes",)
    ),
    "no name": Case("POST", "/datasets", {"files": declared({"a": b"a"})}, names=("/name", "is missing")),
    "a name of many lines": Case("POST", "/models", dataset() | {"name": "a\nb"}, names=("/name", "U+000A")),
    "an upload of somebody": Case(
        "POST",
        lambda things: f"/datasets/{things.datasets['uploading']}/upload/complete",
        lambda things: {"upload_id": things.stranger.dataset_upload_id, "files": []},
        404,
        "upload_unknown",
    ),
}

PARAMETERS = {
    "rank 0": Case("POST", "/jobs", parameter(rank=0), names=(JOB + "rank", "rank is 0", "at least 1")),
    "rank beyond": Case("POST", "/jobs", parameter(rank=513), names=("513", "at most 512")),
    "rank of text": Case("POST", "/jobs", parameter(rank="many"), names=("whole number", "many")),
    "rank without end": Case("POST", "/jobs", parameter(rank=10**400), names=(JOB + "rank",)),
    "a negative learning rate": Case(
        "POST", "/jobs", parameter(learning_rate=-1), names=("learning_rate is -1", "greater than 0")
    ),
    "dropout 1": Case("POST", "/jobs", parameter(dropout=1), names=("dropout is 1", "less than 1")),
    "no number": Case(
        "POST",
        "/jobs",
        content=b'{"hyperparameters": {"alpha": NaN, "epochs": Infinity}}',
        headers=JSON,
        names=("alpha is NaN", "epochs is Infinity", "finite number", "/dataset_id"),
    ),
    "more frames than a clip has": Case(
        "POST",
        "/jobs",
        parameter(frames=9),
        code="frames_exceed_clip",
        names=(JOB + "frames", "frames is 9", "(a.mp4) has 8", "8 or fewer"),
    ),
    "more at once than in a batch": Case(
        "POST", "/jobs", parameter(batch_size=2, micro_batch_size=4), names=("micro_batch_size 4", "lower it")
    ),
    "a modality twice": Case(
        "POST", "/jobs", parameter(target_modalities=["text", "text"]), names=("twice",)
    ),
    "an unknown modality": Case(
        "POST", "/jobs", parameter(target_modalities=["sound"]), names=("sound", "vision")
    ),
    "a misspelled parameter": Case(
        "POST", "/jobs", parameter(ranc=8), names=(JOB + "ranc", "did you mean rank?")
    ),
    "a misspelled field": Case(
        "POST", "/jobs", job(hyperparameter={}), names=("did you mean hyperparameters?",)
    ),
    "parameters as a list": Case(
        "POST", "/jobs", job(hyperparameters=[1]), names=("/hyperparameters", "object")
    ),
    "an unknown priority": Case("POST", "/jobs", job(priority="urgent"), names=("/priority", "'high'")),
    "an id of something else": Case(
        "POST", "/jobs", job(dataset_id="job_" + "0" * 32), names=("/dataset_id", "job_0000")
    ),
}

STATES = {
    **{
        f"a dataset that is {state}": Case("POST", "/jobs", job_on("dataset_id", state), 409, code, names)
        for state, code, names in (
            ("uploading", "dataset_not_ready", ("is uploading", "wait")),
            ("uploaded", "dataset_not_ready", ("is uploaded", "wait")),
            ("validating", "dataset_not_ready", ("is validating", "wait")),
            ("rejected", "dataset_rejected", ("see its problems", "register corrected files")),
            ("deleted", "dataset_deleted", ("was deleted", "choose another")),
        )
    },
    **{
        f"a model that is {state}": Case("POST", "/jobs", job_on("model_id", state), 409, code, names)
        for state, code, names in (
            ("uploading", "model_not_ready", ("is uploading", "wait")),
            ("uploaded", "model_not_ready", ("is uploaded", "wait")),
            ("validating", "model_not_ready", ("is validating", "wait")),
            ("rejected", "model_rejected", ("see its problems",)),
            ("deleted", "model_deleted", ("was deleted",)),
        )
    },
    "a model that is an adapter": Case(
        "POST",
        "/jobs",
        lambda things: job(model_id=things.adapter)(things),
        409,
        "not_a_base_model",
        ("choose a base model",),
    ),
    "a dataset that is not there": Case(
        "POST", "/jobs", job(dataset_id=new_id(Prefix.DATASET)), 404, "not_found", ("ds_",)
    ),
    "files for a finished upload": Case(
        "POST",
        lambda things: f"/datasets/{things.datasets['uploaded']}/upload",
        None,
        409,
        "already_uploaded",
        ("register another",),
    ),
    "a stop after the end": Case(
        "POST",
        lambda things: f"/jobs/{things.finished_job}/stop",
        {},
        409,
        "job_ended",
        ("has succeeded already",),
    ),
    "a stop of another kind": Case(
        "POST",
        lambda things: f"/jobs/{things.waiting_job}/stop",
        {"mode": "gently"},
        names=("/mode", "gently", "'graceful'"),
    ),
}

OTHERS = {
    f"somebody else's {what}": Case(method, path, body, 404, "not_found")
    for what, method, path, body in (
        ("job, shown", "GET", lambda things: f"/jobs/{things.others_job}", None),
        ("job, stopped", "POST", lambda things: f"/jobs/{things.others_job}/stop", {}),
        ("dataset, deleted", "DELETE", lambda things: f"/datasets/{things.stranger.dataset_id}", None),
        (
            "dataset, uploaded to",
            "POST",
            lambda things: f"/datasets/{things.stranger.dataset_id}/upload",
            None,
        ),
        ("model, deleted", "DELETE", lambda things: f"/models/{things.stranger.model_id}", None),
        ("model, downloaded", "GET", lambda things: f"/models/{things.stranger.model_id}/download", None),
        (
            "dataset, trained on",
            "POST",
            "/jobs",
            lambda things: job(dataset_id=things.stranger.dataset_id)(things),
        ),
        ("model, trained", "POST", "/jobs", lambda things: job(model_id=things.stranger.model_id)(things)),
        ("adapter", "GET", lambda things: f"/jobs/{things.others_job}/adapter", None),
    )
}

KEYS = {
    "a key of another request": Case(
        "POST",
        "/jobs",
        job(name="second"),
        code="idempotency_key_reused",
        names=("another request",),
        headers=lambda things: {"Idempotency-Key": things.used_key},
    ),
    **{
        f"a key that is {what}": Case(
            "POST", "/jobs", job(), names=("Idempotency-Key",), headers={"Idempotency-Key": key}
        )
        for what, key in (("empty", ""), ("too long", "k" * 256), ("several words", "a key"))
    },
}

QUERIES = {
    "an invented cursor": Case("GET", "/jobs?cursor=AAAA", None, 400, "bad_cursor", ("cursor",)),
    "limit 0": Case("GET", "/jobs?limit=0", names=("/query/limit", 'limit is \\"0\\"', "at least 1")),
    "limit beyond": Case("GET", "/jobs?limit=201", names=("/query/limit", "at most 200")),
    "a limit of text": Case("GET", "/jobs?limit=all", names=("/query/limit", "whole number")),
    "a position beyond the head": Case(
        "GET", f"/jobs?min_position={10**9}", None, 400, "bad_position", (str(10**9), "beyond the log's end")
    ),
    "events of nobody here": Case(
        "GET",
        "/events?types=kinora.user.logged_in",
        code="bad_filter",
        names=("/query/types", "stream_id", "usr_"),
    ),
    "no types of events": Case(
        "GET", "/events?types=", code="invalid_request", names=("/query/types", "leave it out")
    ),
    "events behind the head": Case("GET", f"/events?after={10**9}", None, 400, "bad_position", (str(10**9),)),
    "an unknown state": Case(
        "GET", "/jobs?status=asleep", code="unknown_value", names=("/query/status", "asleep", "running")
    ),
    "a misspelled filter": Case(
        "GET",
        "/jobs?statsu=failed",
        code="unknown_parameter",
        names=("/query/statsu", "did you mean status?", "cursor, limit, min_position, status"),
    ),
    "a filter that is given twice": Case(
        "GET",
        "/events?types=kinora.job.requested&types=kinora.job.succeeded",
        code="repeated_parameter",
        names=("/query/types", "2 times", "with commas"),
    ),
    "an export that ends before it begins": Case(
        "GET",
        "/events/export?after=1&until=0",
        names=("/query/until", "until 0", "after 1"),
    ),
    "a parameter of a command": Case(
        "POST", "/jobs?dry_run=1", job(), code="unknown_parameter", names=("/query/dry_run", "there is none")
    ),
    "a malformed id": Case("GET", "/jobs/nope", None, 404, "not_found", ("nope", "job_")),
}

BODIES = {
    "half a document": Case(
        "POST", "/jobs", content=b'{"name": ', headers=JSON, status=400, code="malformed_json"
    ),
    "a list": Case("POST", "/jobs", content=b"[]", headers=JSON, names=("must be a JSON object",)),
    "nothing": Case("POST", "/jobs", content=b"", headers=JSON, names=("the body", "missing")),
    "no Unicode": Case("POST", "/jobs", content=b'"\xff"', headers=JSON, status=400, code="malformed_json"),
    "brackets without end": Case(
        "POST", "/jobs", content=b"[" * 100_000, headers=JSON, status=400, code="malformed_json"
    ),
    "digits without end": Case(
        "POST", "/jobs", content=b"9" * 10_000, headers=JSON, status=400, code="malformed_json"
    ),
    "another type": Case(
        "POST",
        "/jobs",
        content=b"{}",
        headers={"content-type": "text/plain"},
        status=415,
        code="unsupported_media_type",
        names=("text/plain", "application/json"),
    ),
    "a packed body": Case(
        "POST",
        "/jobs",
        content=b"x",
        headers=JSON | {"content-encoding": "gzip"},
        status=415,
        code="unsupported_media_type",
        names=("gzip", "plain"),
    ),
    "a body over the limit": Case(
        "POST", "/jobs", content=b"x" * (2**20 + 1), status=413, code="body_too_large", names=(str(2**20),)
    ),
}

CASES = WHO | DECLARATIONS | PARAMETERS | STATES | OTHERS | KEYS | QUERIES | BODIES


@pytest.mark.parametrize("name", CASES)
async def test_a_bad_request_is_refused_and_leaves_nothing(
    name: str, visit: Visit, ada: Person, things: Things
) -> None:
    case = CASES[name]
    before = recorded(visit.service)
    client = await visit.client(case.token(visit, ada))
    path = case.path if isinstance(case.path, str) else case.path(things)
    body = case.body(things) if callable(case.body) else case.body
    headers = case.headers(things) if callable(case.headers) else case.headers
    sent: dict[str, Any] = {"json": body} if case.content is None else {"content": case.content}
    answer = await client.request(case.method, f"/api/v1{path}", headers=headers, **sent)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (case.status, case.code), answer.text
    assert [part for part in case.names if part not in answer.text] == [], answer.text
    assert problem["detail"]
    assert recorded(visit.service) == before


async def test_one_fault_too_many_leaves_the_good_ones_out(visit: Visit, ada: Person, things: Things) -> None:
    """All faults are told at once, so that nobody corrects them one by one."""
    body = parameter(rank=0, dropout=2, frames="x", colour=1)(things) | {"priority": 7, "labels": {"": "x"}}
    answer = await ada.post("/jobs", body)
    pointers = {error["pointer"] for error in answer.json()["errors"]}
    assert pointers == {
        *(JOB + name for name in ("rank", "dropout", "frames", "colour")),
        "/priority",
        "/labels/",
    }


async def test_a_rejected_dataset_says_why(ada: Person, things: Things) -> None:
    shown = (await ada.get(f"/datasets/{things.datasets['rejected']}")).json()
    assert [(problem["code"], problem["where"]) for problem in shown["problems"]] == [
        ("undecodable_clip", "a.mp4")
    ]
    assert "convert it" in shown["problems"][0]["message"]


async def test_the_same_key_while_the_first_request_runs(visit: Visit, ada: Person, things: Things) -> None:
    """The second waits for the first one's outcome, or is refused because it asks for something else."""
    before = recorded(visit.service)
    key = uuid4().hex
    bodies = [job(name=name)(things) for name in ("one", "one", "two")]
    answers = await asyncio.gather(*(ada.post("/jobs", body, key=key) for body in bodies))
    ids = {answer.json()["id"] for answer in answers if answer.status_code == 202}
    assert len(ids) == 1
    refused = [answer for answer in answers if answer.status_code != 202]
    assert {answer.json()["code"] for answer in refused} == {"idempotency_key_reused"}
    assert recorded(visit.service)["kinora_events"] == before["kinora_events"] + 1


# ---- requests that stop half-way ----------------------------------------------------------------


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def half_a_request(visit: Visit, ada: Person, framing: str, body: bytes) -> Connection:
    """A connection over which a job is asked for, but the rest of its body does not come."""
    url = httpx.URL(visit.service.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = (
        f"POST /api/v1/jobs HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nAuthorization: Bearer {ada.token}\r\n"
        f"Content-Type: application/json\r\n{framing}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


async def test_a_client_that_leaves_half_way(visit: Visit, ada: Person, things: Things) -> None:
    before = recorded(visit.service)
    body = json.dumps(job()(things)).encode()
    for part in (b"", body[:20], body[:-1]):
        _, writer = await half_a_request(visit, ada, f"Content-Length: {len(body)}", part)
        writer.close()
        await writer.wait_closed()
    assert (await ada.get("/jobs")).status_code == 200
    assert recorded(visit.service) == before


async def test_a_body_that_does_not_come(visit: Visit, ada: Person, things: Things) -> None:
    """Neither silence nor single drops hold a connection for longer than a body may take."""
    before = recorded(visit.service)
    body = json.dumps(job()(things)).encode()
    reader, silent = await half_a_request(visit, ada, f"Content-Length: {len(body)}", body[:-1])
    _, dawdling = await half_a_request(visit, ada, "Transfer-Encoding: chunked", b"1\r\n{\r\n")

    async def drip() -> None:
        with suppress(ConnectionError):  # the service has hung up
            while True:
                dawdling.write(b"1\r\n \r\n")
                await dawdling.drain()
                await asyncio.sleep(0.05)

    async with asyncio.timeout(20):
        answer, _ = await asyncio.gather(reader.read(), drip())
    for writer in (silent, dawdling):
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    problem = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert problem["code"] == "body_too_slow"
    assert f"{len(body) - 1} bytes did" in problem["detail"]
    assert (await ada.get("/jobs")).status_code == 200
    assert recorded(visit.service) == before
