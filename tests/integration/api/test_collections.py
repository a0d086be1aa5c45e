"""Deleting what nobody needs, while people upload: nothing that somebody needs is lost."""

import asyncio
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from command_api.keeping import LOCK, deleting, keeping
from command_api.objects import Entry, ObjectStoreUnavailable
from command_api.storage import alone
from command_api.storage.alone import ObjectsBusy
from command_api.storage.collector import Collector
from command_api.storage.ledger import Ledger
from command_api.storage.outcome import Tally
from command_api.storage.sweeps import UploadSessions
from kinora.local.servers import EmbeddedServers
from schemas import work
from schemas.objects import checkpoint_prefix, content_key, log_prefix
from tests.integration.api.running import MEBIBYTE, Person, Visit
from tests.integration.api.stories import (
    Agent,
    complete,
    open_session,
    put_parts,
    ready_inputs,
    register,
    request_job,
    sha256,
    start_training,
    uploaded,
)


class Collecting:
    """A collection of one organization, long after the grace period, in two steps."""

    def __init__(self, visit: Visit, person: Person) -> None:
        self.visit = visit
        self.organization_id = person.organization_id
        self.tally = Tally()

    async def begin(self) -> "Collecting":
        parts = self.visit.service.parts
        before = datetime.now(UTC) + timedelta(hours=1)
        store = await self.visit.store()
        self.collector = Collector(parts.log, store, parts.settings.postgres.conninfo(), before)
        self.ledger: Ledger = self.collector.ledger(self.organization_id)
        self.found: list[Entry] = [
            entry async for entry in self.collector.find(self.organization_id, self.ledger, self.tally)
        ]
        return self

    async def end(self) -> set[str]:
        """The keys that are gone."""
        await self.collector.delete(self.organization_id, self.ledger, self.found, self.tally)
        return {each.key for each in self.tally.outcome().keys}

    async def all(self) -> set[str]:
        return await (await self.begin()).end()


async def keys(visit: Visit, person: Person) -> set[str]:
    store = await visit.store()
    return {key async for key, _ in store.iterate(f"{person.organization_id}/")}


def content(person: Person, *contents: bytes) -> set[str]:
    return {content_key(person.organization_id, sha256(each)) for each in contents}


async def test_files_go_when_the_last_dataset_that_has_them_is_deleted(visit: Visit) -> None:
    ada = await visit.sign_up()
    own, shared, other = os.urandom(10), os.urandom(20), os.urandom(30)
    first = await uploaded(ada, "datasets", {"a.mp4": own, "b.mp4": shared})
    await uploaded(ada, "models", {"b.bin": shared, "c.bin": other})
    assert await Collecting(visit, ada).all() == set()
    await ada.delete(f"/datasets/{first['id']}")
    before = await keys(visit, ada)
    gone = await Collecting(visit, ada).all()
    # The file that only it had, and its listing.
    assert gone > content(ada, own)
    assert len(gone) == 2
    assert await keys(visit, ada) == before - gone
    assert content(ada, shared, other) <= before - gone


async def test_other_organizations_are_none_of_its_business(visit: Visit) -> None:
    ada, bob = await visit.sign_up("ada"), await visit.sign_up("bob")
    same = os.urandom(10)
    items = [await uploaded(person, "datasets", {"a.mp4": same}) for person in (ada, bob)]
    await ada.delete(f"/datasets/{items[0]['id']}")
    before = await keys(visit, bob)
    assert content(ada, same) < await Collecting(visit, ada).all()
    assert await keys(visit, bob) == before
    assert content(bob, same) < before


async def test_what_is_declared_again_between_look_and_deletion_is_spared(visit: Visit) -> None:
    ada = await visit.sign_up()
    files = {"a.mp4": os.urandom(10), "b.mp4": os.urandom(20)}
    first = await uploaded(ada, "datasets", files)
    await ada.delete(f"/datasets/{first['id']}")
    collecting = await Collecting(visit, ada).begin()
    assert len(collecting.found) == 3
    second = await register(ada, "models", files)
    session = await open_session(ada, "models", second["id"])
    assert session["files"] == []  # it relies on what is there
    assert await collecting.end() == set()
    answer = await complete(ada, "models", second["id"], session["upload_id"], [])
    assert answer.json()["status"] == "uploaded"
    assert collecting.tally.spared == 3
    assert content(ada, *files.values()) < await keys(visit, ada)


async def test_a_session_that_comes_during_a_deletion_waits_and_asks_for_what_is_gone(visit: Visit) -> None:
    ada = await visit.sign_up()
    files = {"a.mp4": os.urandom(10)}
    first = await uploaded(ada, "datasets", files)
    await ada.delete(f"/datasets/{first['id']}")
    conninfo = visit.service.parts.settings.postgres.conninfo()
    second = await register(ada, "datasets", files | {"new.mp4": os.urandom(9)})
    async with deleting(conninfo) as allowed:
        assert allowed  # its log was read before `second` was in it
        opening = asyncio.create_task(open_session(ada, "datasets", second["id"]))
        await _somebody_waits(conninfo)
        store = await visit.store()
        for key in content(ada, *files.values()):
            await store.delete(key)
        assert not opening.done()
    session = await opening
    assert [file["path"] for file in session["files"]] == ["a.mp4", "new.mp4"]


async def _somebody_waits(conninfo: str) -> None:
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        async with asyncio.timeout(20):
            waiting = False
            while not waiting:
                cursor = await connection.execute(
                    "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                    " AND (classid::bigint << 32) + objid::bigint = %s",
                    (LOCK,),
                )
                waiting = await cursor.fetchone() is not None
                await asyncio.sleep(0.02)


async def test_nothing_goes_while_objects_are_copied(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "PATIENCE_SECONDS", 0.1)
    ada = await visit.sign_up()
    item = await uploaded(ada, "datasets", {"a.mp4": os.urandom(10)})
    await ada.delete(f"/datasets/{item['id']}")
    collecting = await Collecting(visit, ada).begin()
    async with keeping(visit.service.parts.settings.postgres.conninfo()):
        with pytest.raises(ObjectsBusy):
            await collecting.end()
        # Uploads do not wait for it.
        await uploaded(ada, "datasets", {"b.mp4": os.urandom(10)})
    assert len(await collecting.end()) == 2


async def test_only_what_a_past_attempt_left_unreported_goes(visit: Visit) -> None:
    ada = await visit.sign_up()
    inputs = await ready_inputs(visit, ada)
    job = (await request_job(ada, inputs))["id"]
    agent = await Agent.enrolled(visit, ada)
    await start_training(agent, job)
    place = ada.organization_id, job, 1
    reported = await agent.stored(checkpoint_prefix(*place, 2), {"state": b"two"})
    await agent.report(job, work.CheckpointStored(step=2, objects=reported))
    left = await agent.stored(checkpoint_prefix(*place, 4), {"state": b"four"})
    left += await agent.stored(log_prefix(*place), {"log-1.ndjson": b"{}"})
    # It may still report them.
    assert await Collecting(visit, ada).all() == set()
    # Inputs stay for the job, whoever deletes them.
    await ada.delete(f"/datasets/{inputs.dataset_id}")
    await agent.report(job, work.Released(reason="shut down"))
    assert await Collecting(visit, ada).all() == {each.key for each in left}


async def test_an_upload_that_nobody_goes_on_with_is_closed_and_begun_anew(visit: Visit) -> None:
    ada = await visit.sign_up()
    small, large = os.urandom(50), os.urandom(6 * MEBIBYTE)
    item = await register(ada, "datasets", {"a.mp4": small, "b.mp4": large})
    session = await open_session(ada, "datasets", item["id"])
    done = await put_parts(session, [small, large])
    first = [file for file in done if file["sha256"] == sha256(small)]
    await complete(ada, "datasets", item["id"], session["upload_id"], first)
    store, parts = await visit.store(), visit.service.parts
    loose = f"{ada.organization_id}/uploads/{session['upload_id']}/{sha256(os.urandom(1))}"
    await store.put_bytes(loose, b"put and never completed")
    conninfo = parts.settings.postgres.conninfo()
    # An open session loses nothing, however old its objects are.
    assert await Collecting(visit, ada).all() == set()
    assert await UploadSessions(conninfo, store, 3600).sweep() == 0
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(
            "UPDATE kinora_uploads SET active_at = now() - interval '2 hours' WHERE upload_id = %s",
            (session["upload_id"],),
        )
    sweep = UploadSessions(conninfo, store, 3600)
    assert (await sweep.count(), await sweep.sweep(), await sweep.count()) == (1, 1, 0)
    assert await store.head(loose) is None
    answer = await complete(ada, "datasets", item["id"], session["upload_id"], done)
    assert (answer.status_code, answer.json()["code"]) == (404, "upload_unknown")
    assert (await ada.get(f"/datasets/{item['id']}")).json()["status"] == "uploading"
    again = await open_session(ada, "datasets", item["id"])
    assert again["upload_id"] != session["upload_id"]
    assert [file["path"] for file in again["files"]] == ["b.mp4"]
    done = await put_parts(again, [large])
    answer = await complete(ada, "datasets", item["id"], again["upload_id"], done)
    assert answer.json()["status"] == "uploaded"


async def test_what_lies_below_an_unreadable_listing_stays(visit: Visit) -> None:
    ada = await visit.sign_up()
    kept = await uploaded(ada, "datasets", {"a.mp4": os.urandom(10)})
    gone = await uploaded(ada, "datasets", {"b.mp4": os.urandom(10)})
    await ada.delete(f"/datasets/{gone['id']}")
    listing = (await visit.service.parts.bus.load(kept["id"])).state.registered.listing  # type: ignore[attr-defined]
    store = await visit.store()
    await store.put_bytes(listing.key, b"{not a listing")
    before = await keys(visit, ada)
    with pytest.raises(Exception, match="restore it from a backup"):
        await Collecting(visit, ada).all()
    assert await keys(visit, ada) == before


async def test_collecting_is_the_operators(ada: Person, operator: Person) -> None:
    for answer in (
        await ada.post("/storage/collections", {"dry_run": True}),
        await ada.get("/storage/collections"),
        await ada.get("/storage/collections/1"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope")
    answer = await operator.post("/storage/collections", {"dry_run": True})
    asked = answer.json()
    assert (answer.status_code, asked["state"], asked["dry_run"]) == (202, "requested", True)
    assert asked["requested_by"] == operator.user_id
    again = (await operator.post("/storage/collections", {"dry_run": True})).json()
    assert again["id"] == asked["id"]
    shown = await operator.get(f"/storage/collections/{asked['id']}")
    assert shown.json() == {key: value for key, value in asked.items() if key != "command_id"}
    assert asked["id"] in {each["id"] for each in (await operator.get("/storage/collections")).json()["data"]}
    for number in ("99999", str(2**63), "9" * 40, "-1", "x"):
        missing = await operator.get(f"/storage/collections/{number}")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


async def test_while_the_store_is_away_nobody_relies_on_what_was_being_deleted(
    visit: Visit, servers: EmbeddedServers
) -> None:
    ada = await visit.sign_up()
    item = await uploaded(ada, "datasets", {"a.mp4": os.urandom(10)})
    await ada.delete(f"/datasets/{item['id']}")
    collecting = await Collecting(visit, ada).begin()
    conninfo = visit.service.parts.settings.postgres.conninfo()
    await servers.child("s3").stop()
    try:
        ending = asyncio.create_task(collecting.end())
        done, _ = await asyncio.wait({ending}, timeout=1)
        async with deleting(conninfo) as allowed:
            assert (done, allowed) == (set(), False)  # it keeps the lock until it knows
    finally:
        await servers.revive("s3")
    # Whether the store came back in time for the repeats of the same request or not.
    with suppress(ObjectStoreUnavailable):
        await ending
    assert len(await collecting.end()) == 2
