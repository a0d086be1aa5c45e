"""Imports as the API takes them: what is refused leaves no trace, what is taken waits to be fetched."""

import pytest

from tests.integration.api.running import Person, Visit

CANARY = "canary-a41e7c"


async def ask(
    person: Person, uri: str, secret: str | None = None, kind: str = "datasets"
) -> tuple[int, dict]:  # type: ignore[type-arg]
    source = {"uri": uri} | ({} if secret is None else {"secret": secret})
    answer = await person.post(f"/{kind}/import", {"source": source})
    assert CANARY not in answer.text
    return answer.status_code, answer.json()


@pytest.mark.parametrize("kind", ["datasets", "models"])
async def test_it_is_taken_shown_listed_and_deleted(
    visit: Visit, ada: Person, bob: Person, kind: str
) -> None:
    status, item = await ask(ada, "https://example.org/shapes.tar.gz", kind=kind)
    assert (status, item["status"], item["name"], item["import_attempt"]) == (202, "importing", "shapes", 1)
    assert item["source"] == {"kind": "url", "uri": "https://example.org/shapes.tar.gz", "secret": None}
    path, position = f"/{kind}/{item['id']}", {"min_position": item["last_position"]}
    shown = (await ada.get(path, params=position)).json()
    assert (shown["status"], shown["source"], shown["listing"]) == ("importing", item["source"], None)
    listed = (await ada.get(f"/{kind}", params={"status": "importing"})).json()["data"]
    assert item["id"] in [each["id"] for each in listed]
    progress = (await ada.get(f"{path}/import")).json()
    assert progress == {"attempt": 1, "stage": "waiting", "bytes_done": 0, "bytes_total": None}
    for answer in (
        await bob.get(path),
        await bob.get(f"{path}/import"),
        await bob.post(f"{path}/import/retry"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    again = await ada.post(f"{path}/import/retry")
    assert (again.status_code, again.json()["last_position"]) == (202, item["last_position"])
    uploading = await ada.post(f"{path}/upload")
    assert (uploading.status_code, uploading.json()["code"]) == (409, "being_imported")
    assert (await ada.delete(path)).status_code == 204
    over = await ada.get(f"{path}/import")
    assert (over.status_code, over.json()["code"]) == (409, "no_import")


async def test_what_is_refused_leaves_no_trace(visit: Visit) -> None:
    ada = await visit.sign_up()
    await ada.http.put("/api/v1/secrets/token", json={"kind": "token", "value": CANARY})
    before = (await ada.get("/events", params={"limit": 200})).json()["data"]
    for uri, secret, expected in (
        ("ftp://example.org/x", None, (422, "source_invalid")),
        ("x" * 3000, None, (422, "invalid_request")),
        (f"https://ada:{CANARY}@example.org/x.zip", None, (422, "source_holds_secret")),
        (f"https://example.org/x.zip?X-Amz-Signature={CANARY}", None, (422, "source_holds_secret")),
        (f"https://{CANARY}:x/", None, (422, "source_invalid")),
        ("http://127.0.0.1/x.zip", None, (422, "address_refused")),
        ("http://[::ffff:10.0.0.1]/x.zip", None, (422, "address_refused")),
        ("http://169.254.169.254/latest/meta-data", None, (422, "address_refused")),
        ("s3://lab-data/x", None, (422, "secret_needed")),
        ("s3://lab-data/x", "none", (404, "secret_unknown")),
        ("s3://lab-data/x", "token", (422, "secret_unsuitable")),
        ("file:///etc", None, (403, "missing_scope")),
    ):
        status, problem = await ask(ada, uri, secret)
        assert (status, problem["code"]) == expected, (uri, problem)
    assert (await ada.get("/events", params={"limit": 200})).json()["data"] == before


async def test_secrets_of_others_open_nothing(visit: Visit) -> None:
    ada, bob = await visit.sign_up(), await visit.sign_up("bob")
    await ada.http.put("/api/v1/secrets/mirror", json={"kind": "token", "value": CANARY})
    assert (await ask(ada, "https://example.org/x.zip", "mirror"))[0] == 202
    status, problem = await ask(bob, "https://example.org/x.zip", "mirror")
    assert (status, problem["code"]) == (404, "secret_unknown")


async def test_folders_are_the_operators_and_only_below_roots(operator: Person) -> None:
    status, problem = await ask(operator, "file:///etc")
    assert (status, problem["code"]) == (422, "folder_outside_roots")
