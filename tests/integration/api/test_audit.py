"""Heads, proofs and leaf hashes over REST, each organization for itself; fetched and verified by command."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg import AsyncConnection
from typer.testing import CliRunner, Result

from command_api.transparency import heads, proofs, trees
from command_api.transparency.heads import Signer
from kinora.cli.app import app
from schemas import merkle
from schemas.envelope import stored_bytes
from schemas.heads import HeadOfOrganization
from schemas.ids import Prefix, new_id
from tests.integration.api.running import PASSWORD, Person, Service, Visit
from tests.integration.api.stories import register
from tests.integration.transparency.conftest import new_key

SIGNER = Signer.of(new_key())


async def sign(service: Service) -> int:
    """What the orchestrator's keeper does; returns the head's number."""
    parts = service.parts
    async with await AsyncConnection.connect(
        parts.settings.postgres.conninfo(), autocommit=True
    ) as connection:
        await SIGNER.register(connection)
        while await trees.advance(connection) is not None:
            continue
        await heads.sign_head(connection, SIGNER, parts.log.log_id)
        return (await heads.find_head(connection, None)).head.number


async def test_a_member_proves_an_event_and_others_learn_nothing_of_it(
    visit: Visit, ada: Person, bob: Person
) -> None:
    item = await register(ada, "datasets", {"a": b"a"})
    (event,) = (await ada.get("/events", params={"stream_id": item["id"]})).json()["data"]
    older = await sign(visit.service)

    proof = (await ada.get("/audit/proofs/inclusion", params={"event_id": event["id"]})).json()
    head = HeadOfOrganization.model_validate(proof["head"])
    assert head.tree is not None
    assert head.tree.organization == ada.organization_id
    assert head.shows_tree()
    exported = (await ada.get("/events/export", params={"after": event["position"] - 1})).text
    position, _, state = stored_bytes(exported.splitlines()[0].encode())
    assert proof["leaf"] == merkle.hash_event(position, state).hex()
    assert merkle.includes(
        bytes.fromhex(proof["leaf"]),
        proof["index"],
        head.tree.size,
        [bytes.fromhex(step) for step in proof["path"]],
        bytes.fromhex(head.tree.root),
    )
    by_position = {"position": event["position"], "head": older}
    assert (await ada.get("/audit/proofs/inclusion", params=by_position)).json()["leaf"] == proof["leaf"]

    for asked in ({"event_id": event["id"]}, by_position):
        answer = await bob.get("/audit/proofs/inclusion", params=asked)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    theirs = HeadOfOrganization.model_validate((await bob.get("/audit/heads/latest")).json())
    assert theirs.tree is not None
    assert theirs.tree.organization == bob.organization_id
    assert theirs.head == head.head
    own, others = [await leaf_lines(person) for person in (ada, bob)]
    assert len(own) == head.tree.size
    assert len(others) == theirs.tree.size
    assert not set(own) & set(others)
    assert f"{position} {proof['leaf']}" in own


async def leaf_lines(person: Person, **asked: int) -> list[str]:
    answer = await person.get("/audit/leaves", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.text.splitlines()


async def test_nothing_changed_between_two_heads(visit: Visit) -> None:
    ada = await visit.sign_up()
    older = await sign(visit.service)
    await register(ada, "datasets", {"a": b"a"})
    newer = await sign(visit.service)
    shown = (await ada.get("/audit/proofs/consistency", params={"from": older, "to": newer})).json()
    assert merkle.begins_with(
        shown["older"]["size"],
        bytes.fromhex(shown["older"]["root"]),
        shown["newer"]["size"],
        bytes.fromhex(shown["newer"]["root"]),
        [bytes.fromhex(step) for step in shown["path"]],
    )
    assert shown["older"]["size"] < shown["newer"]["size"]
    backwards = await ada.get("/audit/proofs/consistency", params={"from": newer, "to": older})
    assert (backwards.status_code, backwards.json()["code"]) == (422, "invalid")
    page = (await ada.get("/audit/heads", params={"after": older - 1, "limit": 1})).json()
    assert [each["head"]["number"] for each in page["data"]] == [older]
    rest = (await ada.get("/audit/heads", params={"cursor": page["next_cursor"]})).json()
    assert rest["data"][0]["head"]["number"] == older + 1
    assert (await ada.get(f"/audit/heads/{older}")).json()["tree"] == shown["older"]


async def made_again(service: Service, *, whole: bool) -> None:
    """The trees, from nothing on."""
    conninfo = service.parts.settings.postgres.conninfo()
    async with await AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await trees.forget(connection)
        while whole and await trees.advance(connection) is not None:
            continue


async def test_proofs_stay_valid_when_somebody_is_forgotten(visit: Visit) -> None:
    ada = await visit.sign_up()
    older = await sign(visit.service)
    (registered, *_) = await asyncio.to_thread(visit.service.parts.log.read_stream, ada.organization_id)
    before = (await ada.get("/audit/proofs/inclusion", params={"position": registered.position})).json()
    assert (await ada.post(f"/users/{ada.user_id}/erase", {"confirm": ada.user_id})).status_code == 200
    newer = await sign(visit.service)
    assert newer > older
    conninfo = visit.service.parts.settings.postgres.conninfo()
    async with await AsyncConnection.connect(conninfo, autocommit=True) as connection:
        later = await proofs.prove_inclusion(connection, ada.organization_id, registered.position, None)
        grown = await proofs.prove_consistency(connection, ada.organization_id, older, newer)
    assert later.leaf == before["leaf"]
    assert later.head.tree is not None
    assert grown.older is not None
    assert grown.newer is not None
    assert grown.older.size < grown.newer.size == later.head.tree.size
    steps, root = [bytes.fromhex(step) for step in later.path], bytes.fromhex(later.head.tree.root)
    assert merkle.includes(bytes.fromhex(later.leaf), later.index, later.head.tree.size, steps, root)
    assert merkle.begins_with(
        grown.older.size,
        bytes.fromhex(grown.older.root),
        grown.newer.size,
        bytes.fromhex(grown.newer.root),
        [bytes.fromhex(step) for step in grown.path],
    )


async def test_what_cannot_be_proven_is_said(visit: Visit, ada: Person) -> None:
    number = await sign(visit.service)
    item = await register(ada, "datasets", {"a": b"a"})
    for asked, code in (
        ({"position": item["last_position"]}, (409, "not_in_head")),
        ({"position": 1, "head": number + 1000}, (404, "no_head")),
        ({"event_id": new_id(Prefix.EVENT)}, (404, "not_found")),
        ({}, (422, "not_exactly_one")),
        ({"event_id": new_id(Prefix.EVENT), "position": 1}, (422, "not_exactly_one")),
    ):
        answer = await ada.get("/audit/proofs/inclusion", params=asked)
        assert (answer.status_code, answer.json()["code"]) == code, answer.text
    beyond = await ada.get("/audit/leaves", params={"until": 10**9})
    assert (beyond.status_code, beyond.json()["code"]) == (400, "bad_position")
    assert (await ada.get(f"/audit/heads/{number + 1000}")).status_code == 404
    await made_again(visit.service, whole=False)
    unknown: tuple[tuple[str, dict[str, int]], ...] = (
        ("proofs/inclusion", {"position": 1}),
        ("proofs/consistency", {"from": number}),
        ("leaves", {}),
    )
    for path, parameters in unknown:
        answer = await ada.get(f"/audit/{path}", params=parameters)
        assert (answer.status_code, answer.json()["code"]) == (409, "not_in_head"), path
        assert "made again" in answer.json()["detail"]
    await made_again(visit.service, whole=True)
    assert (await ada.get("/audit/leaves")).status_code == 200
    known = (await ada.get("/audit/keys")).json()["data"]
    assert SIGNER.key_id in [key["key_id"] for key in known]


def documented_program() -> str:
    """What docs/events.md gives to strangers."""
    page = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
    section = page.split("## Verifying")[1]
    return section.split("```python\n")[1].split("```")[0]


def kinora(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


async def test_fetched_verified_and_fetched_again(
    visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way by command, and once more after somebody rewrote an event in the database."""
    ada = await visit.sign_up()
    monkeypatch.setenv("KINORA_HOME", str(tmp_path))
    monkeypatch.setenv("KINORA_URL", visit.service.url)
    monkeypatch.setenv("KINORA_USERNAME", ada.username)
    monkeypatch.setenv("KINORA_PASSWORD", PASSWORD)
    folder = tmp_path / "audit"
    await register(ada, "datasets", {"a": b"a"}, "first")
    await sign(visit.service)
    first = await asyncio.to_thread(kinora, "audit", "fetch", str(folder))
    assert first.exit_code == 0, first.output
    verified = kinora("events", "verify", str(folder), "--json")
    assert verified.exit_code == 0, verified.output
    before = json.loads(verified.stdout)

    own_program = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-I", "-c", documented_program(), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert own_program.stdout.startswith(f"verified {before['events']} events"), own_program.stderr

    (folder / "events.ndjson").write_bytes((folder / "events.ndjson").read_bytes()[:-20])
    item = await register(ada, "datasets", {"a": b"b"}, "second")
    await sign(visit.service)
    assert (await asyncio.to_thread(kinora, "audit", "fetch", str(folder))).exit_code == 0
    after = json.loads(kinora("events", "verify", str(folder), "--json").stdout)
    assert after["verified"]
    assert after["events"] > before["events"]
    assert after["earlier_heads"] == [before["head"]]

    conninfo = visit.service.parts.settings.postgres.conninfo()
    rewrite = (
        "UPDATE kinora_events SET state = convert_to(replace(convert_from(state, 'UTF8'), %s, %s), 'UTF8')"
    )
    with psycopg.connect(conninfo, autocommit=True) as connection:
        where = " WHERE notification_id = %s"
        connection.execute((rewrite + where).encode(), ("second", "changed", item["last_position"]))
    again = tmp_path / "again"
    assert (await asyncio.to_thread(kinora, "audit", "fetch", str(again))).exit_code == 0
    refused = kinora("events", "verify", str(again), "--json")
    assert refused.exit_code == 5
    found = json.loads(refused.stdout)["finding"]
    assert (found["how"], found["position"]) == ("altered", item["last_position"])
    spoken = kinora("events", "verify", str(again))
    assert found["event_id"] in spoken.stdout
    assert kinora("events", "verify", str(again / "events.ndjson")).exit_code == 2
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute((rewrite + where).encode(), ("changed", "second", item["last_position"]))
