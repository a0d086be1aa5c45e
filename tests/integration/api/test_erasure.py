"""Forgetting a person: nothing of them can be read any more, and every proof of the log stays valid."""

import asyncio
import gzip
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from command_api.backup.create import Source, back_up
from command_api.backup.folder import BackupFolder
from command_api.backup.restore import restore
from command_api.backup.verify import check_rows
from command_api.credentials.personal import PersonKey
from command_api.credentials.store import Credentials
from command_api.eventlog.log import EventLog
from command_api.feed import frames
from command_api.pool import open_pool
from schemas.settings import PostgresSettings, S3Settings
from tests.integration.api.following import following
from tests.integration.api.running import PASSWORD, Account, Person, Visit
from tests.integration.api.stories import register
from tests.integration.api.test_following import streaming


def canary() -> str:
    return f"canary-{uuid4().hex[:12]}"


async def sign_up(visit: Visit, name: str, key: str) -> Person:
    stranger = await visit.client()
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    answer = await stranger.post("/api/v1/auth/signup", json=body, headers={"Idempotency-Key": key})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    return await visit.come_in(
        Account(name, made["user_id"], made["organization_id"], made["workspace_id"], made["access_token"])
    )


async def erase(caller: Person, user_id: str, **headers: str) -> tuple[int, dict[str, str]]:
    answer = await caller.post(f"/users/{user_id}/erase", {"confirm": user_id}, headers=headers)
    return answer.status_code, answer.json()


def everything(visit: Visit) -> dict[str, str]:
    """Every table of the database, as text; bytes are decoded where they are text."""
    found: dict[str, str] = {}
    with psycopg.connect(visit.service.parts.settings.postgres.conninfo()) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for schema, table in tables:
            query = sql.SQL("SELECT {}.* FROM {}").format(
                sql.Identifier(table), sql.Identifier(schema, table)
            )
            rows = connection.execute(query).fetchall()
            found[f"{schema}.{table}"] = "\n".join(
                " ".join(
                    each.decode("utf-8", "backslashreplace") if isinstance(each, bytes) else str(each)
                    for each in row
                )
                for row in rows
            )
    return found


def tables_with(visit: Visit, text: str) -> set[str]:
    return {name for name, content in everything(visit).items() if text in content}


async def stored_keys(visit: Visit, person: Person) -> list[str]:
    async with visit.service.parts.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT key FROM kinora_commands WHERE principal = %s", [person.user_id]
        )
        return [row[0] for row in await cursor.fetchall()]


async def test_a_planted_canary_is_found_nowhere_and_the_log_is_what_it_was(
    visit: Visit, capfd: pytest.CaptureFixture[str]
) -> None:
    name, key = canary(), canary()
    ada = await sign_up(visit, name, f"signup-{key}")
    await ada.post("/datasets", {"name": "mine", "files": []}, key=f"refused-{key}")
    kept = await register(ada, "datasets", {"a": b"a"}, "hers")
    await ada.delete(f"/datasets/{kept['id']}")
    await ada.post(
        "/models", {"name": "m", "files": [{"path": "a", "size_bytes": 1, "sha256": "ab" * 32}]}, key=key
    )
    assert (await ada.get("/users/me")).json()["username"] == name
    assert len(await stored_keys(visit, ada)) == 1
    assert tables_with(visit, key) == set(), "a keyed hash stands for it"
    before = await asyncio.to_thread(visit.service.parts.log.read_all, 0, 100_000)

    status, answer = await erase(ada, ada.user_id)
    assert (status, answer["status"]) == (200, "erased")

    after = await asyncio.to_thread(visit.service.parts.log.read_all, 0, 100_000)
    assert [row.state for row in after[: len(before)]] == [row.state for row in before]
    assert [
        row.type for row in after[len(before) :] if row.stream_id in (ada.user_id, ada.organization_id)
    ] == [
        "kinora.user.erased",
        "kinora.organization.member_removed",
    ]
    for text in (name, key):
        assert tables_with(visit, text) == set()
    said = capfd.readouterr()
    assert name not in said.out + said.err
    # What is left of the person is an id, in the log and in what is folded from it.
    left = tables_with(visit, ada.user_id)
    assert {table for table in left if table.startswith("public.")} <= {
        "public.kinora_events",
        "public.kinora_commands",  # the streams that commands of others were about
    }
    assert not any(name.startswith("public.kinora_person") for name in left)


async def test_what_receivers_answered_to_their_events_goes_and_what_is_due_is_still_sent(
    visit: Visit, bob: Person
) -> None:
    ada = await visit.sign_up("ada")
    theirs, others = canary(), canary()
    rows = []
    for person, answer in ((ada, theirs), (bob, others)):
        answered = await person.get("/events", params={"stream_id": person.organization_id})
        for status, event in zip(("delivered", "failed", "pending"), answered.json()["data"], strict=True):
            assert event["actor"] == person.user_id
            rows.append((event["id"], event["type"], event["subject"], status, Jsonb([{"answer": answer}])))
    with psycopg.connect(visit.service.parts.settings.postgres.conninfo()) as connection:
        connection.cursor().executemany(
            "INSERT INTO kinora_webhook_deliveries (delivery_id, subscription_id, organization_id, event_id,"
            " event_type, stream_id, status, attempts, due_at, created_at)"
            " VALUES ('dlv_' || %(event)s, 'sub_erasure', 'org_erasure', %(event)s, %(type)s, %(stream)s,"
            " %(status)s, %(attempts)s, now(), now())",
            [dict(zip(("event", "type", "stream", "status", "attempts"), row, strict=True)) for row in rows],
        )
    assert tables_with(visit, theirs) == {"public.kinora_webhook_deliveries"}

    assert (await erase(ada, ada.user_id))[0] == 200

    assert tables_with(visit, theirs) == set()
    with psycopg.connect(visit.service.parts.settings.postgres.conninfo()) as connection:
        left = connection.execute(
            "DELETE FROM kinora_webhook_deliveries WHERE subscription_id = 'sub_erasure'"
            " RETURNING event_id, status, attempts"
        ).fetchall()
    mine, of_bob = rows[2], rows[3:]
    assert sorted(left) == sorted(
        [(mine[0], "pending", []), *((row[0], row[3], [{"answer": others}]) for row in of_bob)]
    )


async def test_ciphertext_stays_and_its_key_is_gone(visit: Visit) -> None:
    ada = await visit.sign_up("ada")
    parts = visit.service.parts
    credentials = parts.erasure._credentials
    key: PersonKey = await credentials.person_key(ada.user_id)
    (registered, *_) = await asyncio.to_thread(parts.log.read_stream, ada.user_id)
    ciphertext = registered.event.model_dump()["username_ciphertext"]
    assert key.decrypt(ciphertext) == ada.username
    assert (await erase(ada, ada.user_id))[0] == 200
    with pytest.raises(Exception, match="has no key"):
        await credentials.person_key(ada.user_id)
    (still, *_) = await asyncio.to_thread(parts.log.read_stream, ada.user_id)
    assert still == registered


async def test_a_backup_made_afterwards_does_not_bring_the_person_back(
    visit: Visit, database: PostgresSettings, s3: S3Settings, tmp_path: Path
) -> None:
    name = canary()
    ada = await sign_up(visit, name, f"signup-{name}")
    assert (await erase(ada, ada.user_id))[0] == 200
    settings = visit.service.parts.settings
    folder = BackupFolder(tmp_path / "backup")
    await back_up(Source(settings.postgres, settings.s3), folder, None)
    parts = (folder.root / part.path for part in folder.manifest().parts)
    assert [part.name for part in parts if name.encode() in gzip.decompress(part.read_bytes())] == []
    await restore(folder, check_rows(folder), database, s3)
    with EventLog.open(database) as log:
        restored = await asyncio.to_thread(log.read_stream, ada.user_id)
    assert restored[-1].event.TYPE == "kinora.user.erased"
    async with open_pool(database.conninfo(), application_name="test") as pool:
        with pytest.raises(Exception, match="has no key"):
            await Credentials.from_secrets(pool, settings.secrets).person_key(ada.user_id)


async def test_an_erased_person_is_a_stranger_at_once(visit: Visit) -> None:
    ada = await visit.sign_up("ada")
    assert (await erase(ada, ada.user_id))[0] == 200
    for path in ("/users/me", "/datasets", "/events"):
        answer = await ada.get(path)
        assert (answer.status_code, answer.json()["code"]) == (401, "token_invalid")
    stranger = await visit.client()
    body = {"username": ada.username, "password": PASSWORD}
    assert (await stranger.post("/api/v1/auth/login", json=body)).status_code == 401
    # The name is free again, for somebody else.
    again = {"username": ada.username, "email": f"{ada.username}@example.org", "password": PASSWORD}
    answer = await stranger.post("/api/v1/auth/signup", json=again)
    assert answer.status_code == 201
    assert answer.json()["user_id"] != ada.user_id


async def test_a_key_is_overwritten_only_when_nobody_can_read_it_any_more(visit: Visit) -> None:
    """For an older transaction, PostgreSQL would write its deleted row anew with the others."""
    ada = await visit.sign_up("ada")
    conninfo = visit.service.parts.settings.postgres.conninfo()
    async with await psycopg.AsyncConnection.connect(conninfo) as reading:
        await reading.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await reading.execute("SELECT FROM kinora_person_keys")
        erasing = asyncio.create_task(erase(ada, ada.user_id))
        done, _ = await asyncio.wait([erasing], timeout=0.5)
        assert not done
        await reading.rollback()
        assert (await erasing)[0] == 200


async def test_what_an_erased_person_follows_ends_at_once(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await visit.sign_up("ada")
    parts = visit.service.parts

    async def never_again() -> None:
        """So that it is the erasure which ends them, and not the look at memberships some seconds later."""

    monkeypatch.setattr(parts.feed.rights, "check", never_again)
    browser = await visit.client()
    unused = (await ada.post("/events/tickets")).json()["ticket"]
    async with following(visit, ada) as follower, streaming(ada.http) as stream:
        await follower.subscribe("latest")
        await follower.until("caught_up")
        await stream.until("caught_up")
        assert (await erase(ada, ada.user_id))[0] == 200
        assert await follower.closed() == frames.UNAUTHENTICATED
        closing = (await stream.until("closing"))[-1].data
        assert (closing["code"], "erased" in closing["reason"]) == (frames.UNAUTHENTICATED, True)
    answer = await browser.get("/api/v1/events/stream", params={"ticket": unused})
    assert (answer.status_code, answer.json()["code"]) == (401, "ticket_invalid")


async def test_an_operator_erases_others_and_a_repeat_gets_the_first_answer(
    visit: Visit, operator: Person
) -> None:
    ada = await visit.sign_up("ada")
    key = {"Idempotency-Key": uuid4().hex}
    first = await operator.post(f"/users/{ada.user_id}/erase", {"confirm": ada.user_id}, headers=key)
    again = await operator.post(f"/users/{ada.user_id}/erase", {"confirm": ada.user_id}, headers=key)
    assert first.status_code == again.status_code == 200
    assert again.headers["idempotent-replayed"] == "true"
    assert first.headers["x-event-position"] == again.headers["x-event-position"]
    once_more = await erase(operator, ada.user_id)
    assert once_more[0] == 200


async def test_who_may_not(visit: Visit, operator: Person, bob: Person) -> None:
    ada = await visit.sign_up("ada")
    assert (await erase(bob, ada.user_id))[0] == 404
    assert (await ada.get("/users/me")).status_code == 200
    nobody = "usr_" + "0" * 32
    assert (await erase(operator, nobody))[0] == 404
    status, problem = await erase(operator, operator.user_id)
    assert (status, problem["code"]) == (409, "last_operator")
    assert (await operator.get("/users/me")).status_code == 200
    answer = await ada.post(f"/users/{ada.user_id}/erase", {"confirm": "yes"})
    assert (answer.status_code, answer.json()["code"]) == (422, "not_confirmed")
    assert (await ada.get("/users/me")).status_code == 200
    assert await stored_keys(visit, ada) == []
