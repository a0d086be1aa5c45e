"""How errors leave the door, without any server behind it."""

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from command_api import problems
from command_api.domain.errors import Conflict, ImpossibleHistory, Refused
from command_api.routes.middleware import RequestStory


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    app.state.public_url = "https://kinora.example"
    problems.install(app)
    app.add_middleware(RequestStory)
    return app


async def answer_to(app: FastAPI, error: Exception) -> httpx.Response:
    @app.get("/")
    async def fail() -> None:
        raise error

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="https://kinora.example") as client:
        return await client.get("/", headers={"X-Request-ID": "request-1"})


@pytest.mark.parametrize(
    "error", [RuntimeError("the password is swordfish"), ImpossibleHistory("swordfish", object())]
)
async def test_the_unexpected_tells_nothing(app: FastAPI, error: Exception) -> None:
    answer = await answer_to(app, error)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.headers["content-type"] == problems.PROBLEM_JSON
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "request-1"
    assert "swordfish" not in answer.text


@pytest.mark.parametrize(
    "error", [psycopg.OperationalError("swordfish"), psycopg.errors.UndefinedTable("swordfish")]
)
async def test_a_database_that_is_away_may_come_back(app: FastAPI, error: Exception) -> None:
    answer = await answer_to(app, error)
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (
        503,
        "unavailable",
        True,
    )
    assert int(answer.headers["retry-after"]) > 0
    assert "swordfish" not in answer.text


@pytest.mark.parametrize(
    ("error", "status"), [(Conflict("no", code="brand_new_rule"), 409), (Refused("no"), 409)]
)
async def test_a_rule_without_a_page_has_the_status_of_its_class(
    app: FastAPI, error: Exception, status: int
) -> None:
    answer = await answer_to(app, error)
    assert answer.status_code == status
    assert answer.json()["type"].startswith("https://kinora.example/api/v1/problems/")
