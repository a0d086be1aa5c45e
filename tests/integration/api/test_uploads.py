"""Files on their way into the store: only what was declared gets in, and every step may be repeated."""

import asyncio
import os

import httpx
import pytest

from command_api import uploads
from schemas.objects import content_key
from tests.integration.api.running import MEBIBYTE, Person, Visit
from tests.integration.api.stories import (
    complete,
    declared,
    open_session,
    put_parts,
    register,
    sha256,
    uploaded,
)


async def test_small_large_empty_and_repeated_files(visit: Visit, ada: Person) -> None:
    large = os.urandom(11 * MEBIBYTE)
    files = {"captions.jsonl": b"captions", "a.mp4": large, "copy.mp4": large, "empty.txt": b""}
    item = await register(ada, "datasets", files)
    assert item["status"] == "uploading"
    assert item["command_id"].startswith("cmd_")
    session = await open_session(ada, "datasets", item["id"])
    # One content is sent once, and nothing has to be sent for an empty file.
    assert {file["path"]: len(file["parts"]) for file in session["files"]} == {
        "captions.jsonl": 1,
        "a.mp4": 3,
    }
    done = await put_parts(session, list(files.values()))
    answer = await complete(ada, "datasets", item["id"], session["upload_id"], done)
    assert (answer.status_code, answer.json()["status"]) == (202, "uploaded"), answer.text
    store = await visit.store()
    for content in files.values():
        key = content_key(ada.organization_id, sha256(content))
        assert await store.hash(key) == (sha256(content), len(content))
    temporary = f"{ada.organization_id}/uploads/{session['upload_id']}/"
    assert [key async for key, _ in store.iterate(temporary)] == []
    # The same again changes nothing.
    position = answer.headers["x-event-position"]
    again = await complete(ada, "datasets", item["id"], session["upload_id"], done)
    assert (again.status_code, again.json()["status"]) == (202, "uploaded")
    assert again.json()["last_position"] == int(position)


async def test_content_that_is_there_is_not_sent_again(ada: Person) -> None:
    files = {"captions.jsonl": os.urandom(50), "a.mp4": os.urandom(60)}
    await uploaded(ada, "datasets", files)
    second = await register(ada, "models", files)
    session = await open_session(ada, "models", second["id"])
    assert session["files"] == []
    answer = await complete(ada, "models", second["id"], session["upload_id"], [])
    assert answer.json()["status"] == "uploaded"


async def test_other_organizations_content_is_not_there(ada: Person, bob: Person) -> None:
    files = {"a.mp4": os.urandom(60)}
    await uploaded(ada, "datasets", files)
    item = await register(bob, "datasets", files)
    assert len((await open_session(bob, "datasets", item["id"]))["files"]) == 1


@pytest.mark.parametrize("size", [100, 6 * MEBIBYTE], ids=["small", "multipart"])
async def test_other_bytes_are_refused_by_name(visit: Visit, ada: Person, size: int) -> None:
    good, bad = os.urandom(size), os.urandom(size)
    files = {"good.mp4": os.urandom(80), "bad.mp4": good}
    item = await register(ada, "datasets", files)
    session = await open_session(ada, "datasets", item["id"])
    for file in session["files"]:
        if file["path"] == "bad.mp4":
            file["sha256"] = sha256(bad)
    done = await put_parts(session, [bad, files["good.mp4"]])
    for file in done:
        file["sha256"] = sha256(good) if file["sha256"] == sha256(bad) else file["sha256"]
    answer = await complete(ada, "datasets", item["id"], session["upload_id"], done)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "hash_mismatch"), answer.text
    (error,) = problem["errors"]
    assert "bad.mp4" in error["message"]
    assert sha256(bad) in error["message"]
    store = await visit.store()
    assert await store.head(content_key(ada.organization_id, sha256(good))) is None
    # The good file was kept; only the bad one is asked for again.
    session = await open_session(ada, "datasets", item["id"])
    assert [file["path"] for file in session["files"]] == ["bad.mp4"]
    done = await put_parts(session, [good])
    answer = await complete(ada, "datasets", item["id"], session["upload_id"], done)
    assert answer.json()["status"] == "uploaded"


async def test_a_url_takes_only_the_declared_length(ada: Person) -> None:
    item = await register(ada, "datasets", {"a.mp4": b"four"})
    session = await open_session(ada, "datasets", item["id"])
    async with httpx.AsyncClient(trust_env=False) as store:
        answer = await store.put(session["files"][0]["parts"][0]["url"], content=b"far too much")
    assert answer.status_code == 403


async def test_a_file_that_was_never_put(ada: Person) -> None:
    item = await register(ada, "datasets", {"a.mp4": b"never", "b.mp4": b"neither"})
    session = await open_session(ada, "datasets", item["id"])
    claimed = [{"sha256": sha256(b"never"), "parts": [{"number": 1, "etag": "x"}]}]
    answer = await complete(ada, "datasets", item["id"], session["upload_id"], claimed)
    assert (answer.status_code, answer.json()["code"]) == (422, "file_missing")
    # Without naming them the upload is simply not complete.
    answer = await complete(ada, "datasets", item["id"], session["upload_id"], [])
    assert (answer.status_code, answer.json()["status"]) == (202, "uploading")


async def test_parts_must_be_whole_and_in_order(ada: Person) -> None:
    large = os.urandom(6 * MEBIBYTE)
    item = await register(ada, "datasets", {"a.mp4": large})
    session = await open_session(ada, "datasets", item["id"])
    assert session["remaining_bytes"] == len(large)
    (file,) = session["files"]
    (first,) = await put_parts({"files": [{**file, "parts": file["parts"][:1]}]}, [large])
    answer = await complete(ada, "datasets", item["id"], session["upload_id"], [first])
    assert (answer.status_code, answer.json()["code"]) == (422, "parts_refused"), answer.text
    assert "lacks its parts 2 of 2" in answer.json()["errors"][0]["message"]
    # Only the part that is missing is asked for, and only it has to be named.
    session = await open_session(ada, "datasets", item["id"])
    assert [part["number"] for part in session["files"][0]["parts"]] == [2]
    assert session["remaining_bytes"] == MEBIBYTE
    async with httpx.AsyncClient(trust_env=False) as store:
        put = await store.put(session["files"][0]["parts"][0]["url"], content=large[5 * MEBIBYTE :])
    second = {"number": 2, "etag": put.headers["etag"]}
    for parts in ([second, first["parts"][0]], [second, second], [second, {"number": 3, "etag": "x"}]):
        done = [{"sha256": sha256(large), "parts": parts}]
        answer = await complete(ada, "datasets", item["id"], session["upload_id"], done)
        assert (answer.status_code, answer.json()["code"]) == (422, "parts_refused"), answer.text
    done = [{"sha256": sha256(large), "parts": [second]}]
    answer = await complete(ada, "datasets", item["id"], session["upload_id"], done)
    assert answer.json()["status"] == "uploaded"


async def test_a_verification_that_takes_long_goes_on_between_requests(
    ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "COMPLETE_SECONDS", 0.0)
    files = {f"{number}.mp4": os.urandom(6 * MEBIBYTE) for number in range(2)}
    item = await register(ada, "datasets", files)
    session = await open_session(ada, "datasets", item["id"])
    done = await put_parts(session, list(files.values()))
    answers = []
    async with asyncio.timeout(30):
        while not answers or answers[-1].status_code == 503:
            answers.append(await complete(ada, "datasets", item["id"], session["upload_id"], done))
            await asyncio.sleep(0.1)
    problem = answers[0].json()
    assert (answers[0].status_code, problem["code"], problem["retryable"]) == (503, "still_verifying", True)
    assert (answers[-1].status_code, answers[-1].json()["status"]) == (202, "uploaded")


async def test_an_upload_that_the_store_forgot_is_begun_anew(visit: Visit, ada: Person) -> None:
    large = os.urandom(6 * MEBIBYTE)
    item = await register(ada, "datasets", {"a.mp4": large})
    session = await open_session(ada, "datasets", item["id"])
    done = await put_parts(session, [large])
    store = await visit.store()
    key = f"{ada.organization_id}/uploads/{session['upload_id']}/{sha256(large)}"
    await store.abort(key, multipart_id(session))  # as a restart of rclone would
    answer = await complete(ada, "datasets", item["id"], session["upload_id"], done)
    assert (answer.status_code, answer.json()["code"]) == (409, "upload_expired"), answer.text
    session = await open_session(ada, "datasets", item["id"])
    done = await put_parts(session, [large])
    answer = await complete(ada, "datasets", item["id"], session["upload_id"], done)
    assert answer.json()["status"] == "uploaded"


async def test_reopening_hands_out_the_same_upload(ada: Person) -> None:
    large = os.urandom(6 * MEBIBYTE)
    item = await register(ada, "datasets", {"a.mp4": large})
    first = await open_session(ada, "datasets", item["id"])
    second = await open_session(ada, "datasets", item["id"])
    assert (first["upload_id"], multipart_id(first)) == (second["upload_id"], multipart_id(second))
    # Parts of both sessions belong together.
    (half,) = await put_parts(
        {"files": [{**first["files"][0], "parts": first["files"][0]["parts"][:1]}]}, [large]
    )
    (whole,) = await put_parts(second, [large])
    parts = [half["parts"][0], whole["parts"][1]]
    answer = await complete(
        ada, "datasets", item["id"], first["upload_id"], [{"sha256": sha256(large), "parts": parts}]
    )
    assert answer.json()["status"] == "uploaded"


async def test_many_files_come_in_pages(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PAGE_FILES", 3)
    files = {f"clip-{number}.mp4": os.urandom(20) for number in range(7)}
    item = await register(ada, "datasets", files)
    sent = []
    while item["status"] == "uploading":
        session = await open_session(ada, "datasets", item["id"])
        sent.append(len(session["files"]))
        done = await put_parts(session, list(files.values()))
        item = (await complete(ada, "datasets", item["id"], session["upload_id"], done)).json()
    assert sent == [3, 3, 1]
    assert item["status"] == "uploaded"


async def test_a_finished_upload_stays_as_it_is(ada: Person) -> None:
    item = await uploaded(ada, "datasets", {"a.mp4": os.urandom(30)})
    answer = await ada.post(f"/datasets/{item['id']}/upload")
    assert (answer.status_code, answer.json()["code"]) == (409, "already_uploaded")


async def test_only_files_of_the_upload_can_be_completed(ada: Person) -> None:
    first = await register(ada, "datasets", {"a.mp4": os.urandom(30)})
    second = await register(ada, "datasets", {"b.mp4": os.urandom(30)})
    session = await open_session(ada, "datasets", first["id"])
    answer = await complete(ada, "datasets", second["id"], session["upload_id"], [])
    assert (answer.status_code, answer.json()["code"]) == (404, "upload_unknown")
    stranger = [{"sha256": "ab" * 32, "parts": [{"number": 1, "etag": "x"}]}]
    answer = await complete(ada, "datasets", first["id"], session["upload_id"], stranger)
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_file")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"path": "../etc/passwd"}, "/files/1/path"),
        ({"path": "/etc/passwd"}, "/files/1/path"),
        ({"path": "a.mp4"}, "/files/1/path"),
        ({"path": "a.mp4/b.mp4"}, "/files/1/path"),
        ({"sha256": "XY"}, "/files/1/sha256"),
        ({"sha256": sha256(b"a"), "size_bytes": 7}, "/files/1/size_bytes"),
        ({"size_bytes": 0}, "/files/1/sha256"),
        ({"size_bytes": 2**50}, "/files"),
        ({"mode": "0777"}, "/files/1/mode"),
    ],
)
async def test_what_cannot_be_declared(ada: Person, change: dict[str, object], pointer: str) -> None:
    files = declared({"a.mp4": b"a", "b.mp4": b"b"})
    files[1] |= change
    answer = await ada.post("/datasets", {"name": "bad", "files": files})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    assert pointer in {error["pointer"] for error in answer.json()["errors"]}


def multipart_id(session: dict[str, object]) -> str:
    url = session["files"][0]["parts"][0]["url"]  # type: ignore[index]
    return httpx.URL(url).params["uploadId"]
