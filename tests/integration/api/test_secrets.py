"""Credentials for places outside: kept encrypted, told without values, and only inside their workspace."""

import logging

import psycopg
import pytest

from command_api.auth.tokens import WRITE, Principal
from tests.integration.api.running import Person, Visit

CANARY = "canary-0b9f2e7c5d"
TOKEN = {"kind": "token", "value": CANARY}


async def put(person: Person, name: str, body: object) -> tuple[int, dict[str, object]]:
    answer = await person.http.put(f"/api/v1/secrets/{name}", json=body)
    assert CANARY not in answer.text
    return answer.status_code, answer.json()


async def names(person: Person) -> list[str]:
    answer = await person.get("/secrets")
    assert CANARY not in answer.text
    return [secret["name"] for secret in answer.json()["data"]]


async def test_stored_replaced_listed_and_deleted(visit: Visit) -> None:
    ada = await visit.sign_up()
    status, first = await put(ada, "mirror", TOKEN)
    assert (status, first["name"], first["kind"], first["last_used_at"]) == (200, "mirror", "token", None)
    _, second = await put(ada, "mirror", {"kind": "basic", "username": "ada", "value": CANARY})
    assert (second["kind"], second["created_at"]) == ("basic", first["created_at"])
    assert await names(ada) == ["mirror"]
    types = [
        event["type"] for event in (await ada.get("/events")).json()["data"] if "secret" in event["type"]
    ]
    assert types == ["kinora.organization.secret_stored.v1"] * 2
    assert (await ada.delete("/secrets/mirror")).status_code == 204
    assert await names(ada) == []
    gone = await ada.delete("/secrets/mirror")
    assert (gone.status_code, gone.json()["code"]) == (404, "secret_unknown")


async def test_the_value_is_found_nowhere(
    visit: Visit, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither in an answer, nor a log, nor in any row of any table."""
    ada = await visit.sign_up()
    with caplog.at_level(logging.DEBUG):
        await put(ada, "mirror", TOKEN)
        await put(ada, "bad name", TOKEN)
        for body in (
            {**TOKEN, "kind": "x"},
            {**TOKEN, "more": CANARY},
            {**TOKEN, "value": f"{CANARY} "},
            CANARY,
        ):
            assert (await put(ada, "mirror", body))[0] == 422
        for key in ("one", "one"):
            headers = {"Idempotency-Key": f"{ada.user_id}-{key}"}
            answer = await ada.http.put("/api/v1/secrets/mirror", json=TOKEN, headers=headers)
            assert answer.status_code == 200
        other = {**TOKEN, "value": f"{CANARY}-2"}
        answer = await ada.http.put("/api/v1/secrets/mirror", json=other, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
        assert CANARY not in answer.text
    assert CANARY not in caplog.text
    assert CANARY not in "".join(capfd.readouterr())
    conninfo = visit.service.parts.settings.postgres.conninfo()
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute(
            "SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables"
            " WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
        )
        tables = [row[0] for row in await cursor.fetchall()]
        assert any("kinora_secrets" in table for table in tables)
        for table in tables:
            # As text and as the bytes that a bytea is shown in.
            found = await connection.execute(
                f"SELECT count(*) FROM {table} AS t WHERE t::text LIKE %s OR t::text LIKE %s",  # type: ignore[arg-type]
                (f"%{CANARY}%", f"%{CANARY.encode().hex()}%"),
            )
            assert await found.fetchone() == (0,), table


async def test_other_organizations_have_their_own(visit: Visit) -> None:
    ada, bob = await visit.sign_up(), await visit.sign_up("bob")
    await put(ada, "mirror", TOKEN)
    assert await names(bob) == []
    assert (await bob.delete("/secrets/mirror")).status_code == 404
    await put(bob, "mirror", {"kind": "query", "value": "sig=1"})
    assert await names(ada) == ["mirror"]
    listed = (await ada.get("/secrets")).json()["data"]
    assert [secret["kind"] for secret in listed] == ["token"]


async def test_only_administrators_have_to_do_with_them(visit: Visit, ada: Person) -> None:
    member = Principal(ada.user_id, ada.organization_id, ada.workspace_id, WRITE)
    client = await visit.client(visit.service.parts.tokens.issue(member))
    for answer in (
        await client.get("/api/v1/secrets"),
        await client.put("/api/v1/secrets/mirror", json=TOKEN),
        await client.delete("/api/v1/secrets/mirror"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope")
