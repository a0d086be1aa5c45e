"""Every error is a problem document that says what to do, and tells nobody what is none of their business."""

import ast
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

import command_api
from command_api.problems import PROBLEM_JSON
from tests.integration.api.running import MEBIBYTE, Person, Visit


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


async def test_a_body_that_turns_out_too_large(ada: Person) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * MEBIBYTE

    answer = await ada.http.post(
        "/api/v1/jobs", content=endless(), headers={"content-type": "application/json"}
    )
    check(answer, 413, "body_too_large")


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
    "log_mismatch",
    "object_missing",
    "personal_field_unreadable",
    "upload_lost",
}
"""Damage, not answers: whoever asked learns of an internal error only."""


def raised_codes() -> set[str]:
    """Every `code="…"` in the sources, and every class attribute `code`."""
    found = set()
    for file in Path(command_api.__file__).parent.rglob("*.py"):
        if "messaging" in file.parts or file.name == "orchestrator.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
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
