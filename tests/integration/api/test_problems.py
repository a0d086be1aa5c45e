"""Every error is a problem document that says what to do, and tells nobody what is none of their business."""

import ast
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

import command_api
from command_api.problems import PROBLEM_JSON
from schemas.ids import Prefix, new_id
from tests.integration.api.running import MEBIBYTE, Person, Visit
from tests.integration.api.stories import ready_inputs


def check(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == PROBLEM_JSON
    assert problem["status"] == status
    assert problem["type"].endswith(f"/api/v1/problems/{code}")
    assert problem["instance"] == answer.request.url.path
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["title"]
    assert problem["detail"]
    assert isinstance(problem["retryable"], bool)
    return dict(problem)


def messages(problem: dict[str, Any]) -> dict[str, str]:
    return {error["pointer"]: error["message"] for error in problem["errors"]}


async def test_framework_errors_are_problems_too(ada: Person, visit: Visit) -> None:
    check(await ada.get("/nothing/here"), 404, "not_found")
    check(await ada.http.get("/"), 404, "not_found")
    check(await ada.http.put("/api/v1/jobs"), 405, "method_not_allowed")
    check(
        await ada.http.post("/api/v1/jobs", content=b"{", headers={"content-type": "application/json"}),
        400,
        "malformed_json",
    )
    check(
        await ada.http.post("/api/v1/jobs", content=b"[]", headers={"content-type": "application/json"}),
        422,
        "invalid_request",
    )
    check(await ada.http.post("/api/v1/jobs", content=b"x" * (3 * MEBIBYTE)), 413, "body_too_large")


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(("path", "mebibytes"), [("jobs", 1), ("datasets", 2), ("models", 2)])
async def test_a_body_that_turns_out_too_large(ada: Person, path: str, mebibytes: int) -> None:
    """Only a declaration, which names every file, may be larger than the others; here up to 2 MiB."""

    async def endless(size: int) -> AsyncIterator[bytes]:
        for _ in range(0, size, MEBIBYTE // 2):
            yield b"x" * (MEBIBYTE // 2)

    limit = mebibytes * MEBIBYTE
    answer = await ada.http.post(f"/api/v1/{path}", content=endless(limit + 1), headers=JSON)
    assert str(limit) in str(check(answer, 413, "body_too_large")["detail"])
    answer = await ada.http.post(f"/api/v1/{path}", content=endless(limit), headers=JSON)
    assert "character" in str(check(answer, 400, "malformed_json")["detail"])


@pytest.mark.parametrize("headers", [{"content-type": "text/plain"}, {}])
async def test_a_body_of_another_type(ada: Person, headers: dict[str, str]) -> None:
    answer = await ada.http.post("/api/v1/agents/enroll", content=b'{"name": "node"}', headers=headers)
    assert "application/json" in str(check(answer, 415, "unsupported_media_type")["detail"])


async def test_what_is_possible_is_said(ada: Person) -> None:
    ids = {"dataset_id": new_id(Prefix.DATASET), "model_id": new_id(Prefix.MODEL)}
    hyperparameters = {"rank": 0, "colour": 1}
    problem = check(
        await ada.post("/jobs", {**ids, "hyperparameters": hyperparameters}), 422, "invalid_request"
    )
    said = messages(problem)
    assert said["/hyperparameters/rank"] == "rank is 0; it must be at least 1"
    assert said["/hyperparameters/colour"].startswith('there is no field "colour"; there are rank, alpha,')
    answer = await ada.http.post(
        "/api/v1/jobs",
        content=json.dumps({**ids, "hyperparameters": {"max_grad_norm": float("inf")}}),
        headers=JSON,
    )
    assert messages(check(answer, 422, "invalid_request")) == {
        "/hyperparameters/max_grad_norm": "max_grad_norm is Infinity; it must be a finite number"
    }
    problem = check(
        await ada.post("/jobs/" + new_id(Prefix.JOB) + "/stop", {"why": 1}), 422, "invalid_request"
    )
    assert messages(problem) == {"/why": 'there is no field "why"; there are mode, reason'}
    problem = check(await ada.get("/jobs", params={"limit": 0}), 422, "invalid_request")
    assert messages(problem) == {"/query/limit": 'limit is "0"; it must be at least 1'}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/jobs", {"name": "a\u0000b"}),
        ("/jobs", {"labels": {"team": "\u0007"}}),
        ("/datasets", {"name": "   "}),
        ("/models", {"name": "a\nb"}),
        ("/datasets", {"description": "a\u0000b"}),
        ("/agents/enroll", {"name": "\u200b"}),
    ],
)
async def test_texts_are_clean(ada: Person, path: str, body: dict[str, object]) -> None:
    valid: dict[str, dict[str, object]] = {
        "/jobs": {"dataset_id": new_id(Prefix.DATASET), "model_id": new_id(Prefix.MODEL)},
        "/agents/enroll": {},
    }
    files = [{"path": "a", "size_bytes": 1, "sha256": "ab" * 32}]
    rest = valid.get(path, {"name": "shapes", "files": files})
    problem = check(await ada.post(path, {**rest, **body}), 422, "invalid_request")
    (pointer,) = messages(problem)
    assert pointer.split("/")[1] in body


@pytest.mark.parametrize(
    ("path", "parameter", "known"),
    [
        ("/jobs", "status", "cancelled"),
        ("/datasets", "status", "rejected"),
        ("/models", "status", "rejected"),
        ("/agents", "status", "offline"),
        ("/events", "types", "kinora.job.requested"),
        ("/activity", "types", "kinora.job.requested"),
    ],
)
async def test_an_unknown_filter_value_is_refused(ada: Person, path: str, parameter: str, known: str) -> None:
    problem = check(await ada.get(path, params={parameter: f"{known},nope"}), 422, "unknown_value")
    message = messages(problem)[f"/query/{parameter}"]
    assert message.startswith(f"{parameter} names 'nope'; there are ")
    assert known in message
    assert (await ada.get(path, params={parameter: known})).status_code == 200


async def test_one_fault_is_one_sentence(visit: Visit, ada: Person) -> None:
    inputs = await ready_inputs(visit, ada)
    ids = {"dataset_id": inputs.dataset_id, "model_id": inputs.model_id}
    answer = await ada.post("/jobs", {**ids, "hyperparameters": {"frames": 512}})
    problem = check(answer, 422, "frames_exceed_clip")
    assert messages(problem)["/hyperparameters/frames"].startswith("frames is 512, but the shortest clip")
    assert problem["detail"] == "the request is refused at /hyperparameters/frames; see `errors`"


async def test_a_malformed_id_is_named(ada: Person) -> None:
    problem = check(await ada.get("/jobs/nope"), 404, "not_found")
    assert problem["detail"] == '"nope" is not the id of any job: it is job_ and 32 hexadecimal digits'


async def test_a_bad_field_is_pointed_at(ada: Person) -> None:
    problem = check(await ada.post("/agents/enroll", {"name": "", "colour": "red"}), 422, "invalid_request")
    assert {error["pointer"]: error["code"] for error in problem["errors"]} == {  # type: ignore[attr-defined]
        "/name": "string_too_short",
        "/colour": "extra_forbidden",
    }
    problem = check(await ada.get("/jobs", params={"limit": "many"}), 422, "invalid_request")
    assert [error["pointer"] for error in problem["errors"]] == ["/query/limit"]  # type: ignore[attr-defined]


async def test_a_bad_key_is_refused(ada: Person) -> None:
    check(await ada.post("/agents/enroll", {"name": "x"}, key="k" * 256), 422, "invalid_request")


@pytest.mark.parametrize("given", ["short", "with spaces in it", "x" * 129])
async def test_a_malformed_request_id_is_replaced(ada: Person, given: str) -> None:
    answer = await ada.get("/jobs", headers={"X-Request-ID": given})
    assert answer.headers["x-request-id"].startswith("req_")


NEVER_SHOWN = {
    "command_repeated",  # the bus answers with the first outcome
    "event_log_error",
    "impossible_history",
    "listing_lost",  # stands in a collection's outcome
    "log_mismatch",
    "no_agent_accepts",  # a job's warning
    "object_missing",
    "objects_busy",  # stands in a collection's outcome
    "objects_unguarded",  # the import begins to store again
    "personal_field_unreadable",
    "settings",
    "source_failed",  # what it stands above is shown
    "upload_lost",
}
"""Damage, not answers: whoever asked learns of an internal error only."""


def raised_codes() -> set[str]:
    """Every `code="…"` in the sources but a plan's cautions, and every class attribute `code`."""
    found = set()
    for file in Path(command_api.__file__).parent.rglob("*.py"):
        # What agents are told, and what `kinora backup` and `kinora restore` print, is no answer of the API.
        if {"messaging", "backup"} & set(file.parts) or file.name == "orchestrator.py":
            continue
        cautions: set[int] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="Caution"), keywords=keywords):
                    cautions.update(map(id, keywords))  # a call is walked through before its arguments
                case ast.keyword() if id(node) in cautions:
                    continue
                case ast.keyword(arg="code", value=ast.Constant(value=str(code))):
                    found.add(code)
                case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(code))):
                    found.add(code)
    return found


async def test_every_code_has_its_page(visit: Visit) -> None:
    stranger = await visit.client()
    missing = []
    for code in sorted(raised_codes() - NEVER_SHOWN):
        answer = await stranger.get(f"/api/v1/problems/{code}")
        if answer.status_code != 200:
            missing.append(code)
            continue
        page = answer.json()
        assert (page["code"], bool(page["title"]), bool(page["remedy"])) == (code, True, True)
        assert 400 <= page["status"] < 600
    assert missing == []
    check(await stranger.get("/api/v1/problems/nonsense"), 404, "not_found")


FULL_FOR = """
CREATE FUNCTION disk_is_full() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER disk_is_full BEFORE INSERT ON kinora_events FOR EACH ROW
WHEN (NEW.organization_id = {organization}) EXECUTE FUNCTION disk_is_full();
"""
"""PostgreSQL's own error for a full disk, for one organization's events only."""


async def test_a_full_log_is_said_and_the_same_request_works_once_there_is_room(
    ada: Person, visit: Visit
) -> None:
    inputs = await ready_inputs(visit, ada)
    body = {"dataset_id": inputs.dataset_id, "model_id": inputs.model_id}
    async with await psycopg.AsyncConnection.connect(
        visit.service.parts.settings.postgres.conninfo(), autocommit=True
    ) as database:
        before = (await ada.get("/events", params={"limit": 1})).json()["head"]
        await database.execute(sql.SQL(FULL_FOR).format(organization=sql.Literal(ada.organization_id)))
        try:
            problem = check(await ada.post("/jobs", body, key="full-1"), 507, "log_full")
            assert "free space" in str(problem["detail"])
            assert problem["retryable"] is True
            assert (await ada.get("/events", params={"limit": 1})).json()["head"] == before
            assert (await ada.get("/jobs")).status_code == 200
        finally:
            await database.execute("DROP FUNCTION disk_is_full CASCADE")
        assert (await ada.post("/jobs", body, key="full-1")).status_code == 202


async def test_an_operation_s_name_is_no_id(ada: Person) -> None:
    answer = await ada.get("/agents/enroll")
    check(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    both = await ada.http.patch(f"/api/v1/models/{new_id(Prefix.MODEL)}")
    assert both.headers["allow"] == "DELETE, GET"
