"""A job over the API, from its request to its adapter."""

import asyncio
from uuid import uuid4

import httpx

from tests.integration.api.running import Person, Visit
from tests.integration.api.stories import (
    ADAPTER,
    LOG_LINES,
    Agent,
    Files,
    evaluation,
    ready_inputs,
    register,
    request_job,
    sha256,
    start_training,
    train,
    uploaded,
)


async def test_a_job_from_request_to_adapter(visit: Visit, ada: Person) -> None:
    inputs = await ready_inputs(visit, ada)
    answer = await ada.post(
        "/jobs",
        {"name": "first", "dataset_id": inputs.dataset_id, "model_id": inputs.model_id, "labels": {"a": "b"}},
        headers={"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01", "X-Request-ID": "my-request-1"},
    )
    job = answer.json()
    assert (answer.status_code, job["status"], job["labels"]) == (202, "pending", {"a": "b"})
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert answer.headers["x-request-id"] == "my-request-1"
    assert answer.headers["x-event-position"] == str(job["last_position"])
    shown = await ada.get(f"/jobs/{job['id']}", params={"min_position": job["last_position"]})
    assert int(shown.headers["x-projection-position"]) >= job["last_position"]
    assert shown.json()["version"] == 1

    agent = await Agent.enrolled(visit, ada)
    await start_training(agent, job["id"])
    running = await ada.get(f"/jobs/{job['id']}/adapter")
    assert (running.status_code, running.json()["code"]) == (409, "no_adapter")
    end = {"min_position": await train(agent, job["id"])}

    done = (await ada.get(f"/jobs/{job['id']}", params=end)).json()
    assert (done["status"], done["step"], done["loss_last"]) == ("succeeded", 4, 1.0)
    assert [checkpoint["step"] for checkpoint in done["checkpoints"]] == [2]
    await check_metrics(ada, job["id"], end)
    await check_logs(ada, job["id"], end)
    saved = (await ada.get(f"/jobs/{job['id']}/checkpoints", params=end)).json()["data"]
    assert [each["objects"][0]["path"] for each in saved] == ["state.safetensors"]
    adapter = (await ada.get(f"/jobs/{job['id']}/adapter", params=end)).json()
    assert (adapter["partial"], adapter["facts"]["rank"]) == (False, 8)
    await check_files(adapter["files"], ADAPTER)
    model = (await ada.get(f"/models/{done['output_model_id']}", params=end)).json()
    assert (model["kind"], model["status"], model["job_id"]) == ("adapter", "ready", job["id"])
    await check_files((await ada.get(f"/models/{model['id']}/download")).json()["data"], ADAPTER)
    await check_files(
        (await ada.get(f"/models/{inputs.model_id}/download")).json()["data"], inputs.model_files
    )
    await check_events(ada, job["id"])


async def check_metrics(ada: Person, job_id: str, end: dict[str, int]) -> None:
    metrics = (await ada.get(f"/jobs/{job_id}/metrics", params=end)).json()
    assert [(point["step"], point["loss"]) for point in metrics["points"]] == [
        (step, 4.0 / step) for step in (1, 2, 3, 4)
    ]
    assert [(each["phase"], each["evaluation"]) for each in metrics["evaluations"]] == [
        ("before", evaluation(0.0).model_dump()),
        ("after", evaluation(0.75).model_dump()),
    ]
    later = (await ada.get(f"/jobs/{job_id}/metrics", params=end | {"after_step": 3})).json()
    assert [point["step"] for point in later["points"]] == [4]


async def check_logs(ada: Person, job_id: str, end: dict[str, int]) -> None:
    first = (await ada.get(f"/jobs/{job_id}/logs", params=end | {"limit": 3})).json()
    assert [line["message"] for line in first["data"]] == LOG_LINES[:3]
    assert first["data"][0]["level"] == "info"
    second = (
        await ada.get(f"/jobs/{job_id}/logs", params={"limit": 3, "cursor": first["next_cursor"]})
    ).json()
    assert [(line["line"], line["message"]) for line in second["data"]] == list(enumerate(LOG_LINES, 1))[3:6]
    rest = (await ada.get(f"/jobs/{job_id}/logs", params={"after_line": 6})).json()
    assert ([line["message"] for line in rest["data"]], rest["has_more"]) == (LOG_LINES[6:], False)


async def check_files(files: list[dict[str, str]], expected: Files) -> None:
    assert {file["path"] for file in files} == set(expected)
    async with httpx.AsyncClient(trust_env=False) as store:
        for file in files:
            content = (await store.get(file["url"])).content
            assert (content, file["sha256"]) == (expected[file["path"]], sha256(expected[file["path"]]))


async def check_events(ada: Person, job_id: str) -> None:
    seen, parameters = [], {"limit": 4}
    while True:
        answer = await ada.get(f"/jobs/{job_id}/events", params=parameters)
        page = answer.json()
        seen += page["data"]
        if not page["has_more"]:
            break
        assert answer.headers["link"].endswith('rel="next"')
        parameters = {"limit": 4, "cursor": page["next_cursor"]}
    assert seen[0]["type"] == "kinora.job.requested.v1"
    assert seen[-1]["type"] == "kinora.job.succeeded.v1"
    assert [event["streamversion"] for event in seen] == list(range(1, len(seen) + 1))
    assert seen[0]["correlationid"] == "my-request-1"
    assert seen[0]["traceparent"] == "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    assert (seen[0]["actor"], seen[0]["workspace"]) == (ada.user_id, ada.workspace_id)


async def test_a_key_makes_one_job_of_many_requests(visit: Visit, ada: Person) -> None:
    inputs = await ready_inputs(visit, ada)
    body = {"dataset_id": inputs.dataset_id, "model_id": inputs.model_id, "name": "once"}
    key = uuid4().hex
    answers = await asyncio.gather(*(ada.post("/jobs", body, key=key) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.json()["command_id"] for answer in answers}) == 1
    assert len({answer.headers["x-event-position"] for answer in answers}) == 1
    assert sorted(answer.headers.get("idempotent-replayed", "") for answer in answers) == ["", *["true"] * 4]
    other = await ada.post("/jobs", body | {"name": "twice"}, key=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_key_is_its_owners(visit: Visit, ada: Person, bob: Person) -> None:
    key = uuid4().hex
    first = await ada.post("/agents/enroll", {"name": "node"}, key=key)
    second = await bob.post("/agents/enroll", {"name": "node"}, key=key)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] != second.json()["id"]


async def test_every_command_can_be_repeated_by_key(visit: Visit, ada: Person) -> None:
    files = {"a.mp4": uuid4().bytes}
    body = {"name": "x", "files": [{"path": "a.mp4", "size_bytes": 16, "sha256": sha256(files["a.mp4"])}]}
    for kind in ("datasets", "models"):
        key = uuid4().hex
        first, again = [await ada.post(f"/{kind}", body, key=key) for _ in range(2)]
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.json() == again.json()
        key, item = uuid4().hex, first.json()["id"]
        first, again = [await ada.post(f"/{kind}/{item}/upload", key=key) for _ in range(2)]
        assert first.json()["upload_id"] == again.json()["upload_id"]
        assert again.headers["idempotent-replayed"] == "true"
    inputs = await ready_inputs(visit, ada)
    job, key = await request_job(ada, inputs), uuid4().hex
    first, again = [
        await ada.post(f"/jobs/{job['id']}/stop", {"reason": "enough"}, key=key) for _ in range(2)
    ]
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert first.headers["x-event-position"] == again.headers["x-event-position"]


async def test_inputs_must_be_ready(visit: Visit, ada: Person) -> None:
    inputs = await ready_inputs(visit, ada)
    dataset = await register(ada, "datasets", {"a.mp4": b"a"})
    answer = await ada.post("/jobs", {"dataset_id": dataset["id"], "model_id": inputs.model_id})
    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_not_ready")
    answer = await ada.post("/jobs", {"dataset_id": "ds_" + "0" * 32, "model_id": inputs.model_id})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_what_a_job_may_not_ask_for(ada: Person) -> None:
    ids = {"dataset_id": "ds_" + "0" * 32, "model_id": "mdl_" + "0" * 32}
    for change, pointer in (
        ({"hyperparameters": {"rank": 0}}, "/hyperparameters/rank"),
        ({"hyperparameters": {"ranc": 8}}, "/hyperparameters/ranc"),
        ({"hyperparameters": {"batch_size": 2, "micro_batch_size": 4}}, "/hyperparameters"),
        ({"priority": "urgent"}, "/priority"),
        ({"dataset_id": "job_" + "0" * 32}, "/dataset_id"),
    ):
        answer = await ada.post("/jobs", ids | change)
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_stopping(visit: Visit, ada: Person) -> None:
    inputs = await ready_inputs(visit, ada)
    waiting = await request_job(ada, inputs)
    answer = await ada.post(f"/jobs/{waiting['id']}/stop")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    again = await ada.post(f"/jobs/{waiting['id']}/stop")
    assert (again.status_code, again.json()["version"]) == (202, answer.json()["version"])
    running = await request_job(ada, inputs)
    await start_training(await Agent.enrolled(visit, ada), running["id"])
    answer = await ada.post(f"/jobs/{running['id']}/stop", {"mode": "graceful", "reason": "enough"})
    assert answer.json()["status"] == "stopping"
    assert answer.json()["stop_reason"] == "enough"


async def test_lists_are_paged_and_filtered(visit: Visit) -> None:
    ada = await visit.sign_up()
    inputs = await ready_inputs(visit, ada)
    jobs = [await request_job(ada, inputs, name=f"job {number}") for number in range(5)]
    stopped = (await ada.post(f"/jobs/{jobs[0]['id']}/stop")).json()
    fresh = {"min_position": stopped["last_position"]}
    newest_first = [job["id"] for job in reversed(jobs)]
    found: list[str] = []
    url = "/jobs?limit=2"
    while url:
        answer = await ada.get(url, params=None if found else fresh)
        page = answer.json()
        found += [job["id"] for job in page["data"]]
        link = answer.headers.get("link")
        assert (link is not None) == page["has_more"]
        url = link.split(">")[0].removeprefix("</api/v1") if link else ""
    assert found == newest_first
    cancelled = (await ada.get("/jobs", params={"status": "cancelled"})).json()["data"]
    assert [job["id"] for job in cancelled] == [jobs[0]["id"]]
    both = (await ada.get("/jobs", params={"status": "cancelled,pending"})).json()["data"]
    assert len(both) == 5
    first = (await ada.get("/jobs", params={"limit": 2})).json()
    for path, parameters in (
        ("/jobs", {"status": "pending"}),  # a cursor belongs to its list and filters
        ("/models", {}),
    ):
        answer = await ada.get(path, params={"cursor": first["next_cursor"], **parameters})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_cursor")
    assert (await ada.get("/jobs", params={"cursor": "AAAA"})).status_code == 400
    assert (await ada.get("/jobs", params={"limit": 201})).status_code == 422


async def test_a_position_that_does_not_exist(ada: Person) -> None:
    answer = await ada.get("/jobs", params={"min_position": 10**9})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_position")


async def test_a_deleted_dataset_is_gone_but_its_jobs_are_not(visit: Visit, ada: Person) -> None:
    inputs = await ready_inputs(visit, ada)
    job = await request_job(ada, inputs)
    answer = await ada.delete(f"/datasets/{inputs.dataset_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    position = {"min_position": int(answer.headers["x-event-position"])}
    assert (await ada.get(f"/datasets/{inputs.dataset_id}", params=position)).status_code == 404
    assert (await ada.delete(f"/datasets/{inputs.dataset_id}")).status_code == 204
    assert (await ada.get(f"/jobs/{job['id']}", params=position)).status_code == 200
    answer = await ada.post("/jobs", {"dataset_id": inputs.dataset_id, "model_id": inputs.model_id})
    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_deleted")
    await ada.delete(f"/models/{inputs.model_id}")
    assert (await ada.get(f"/models/{inputs.model_id}/download")).status_code == 404


async def test_an_unchanged_resource_is_not_sent_again(ada: Person) -> None:
    item = await uploaded(ada, "models", {"a": uuid4().bytes})
    fresh = {"min_position": item["last_position"]}
    answer = await ada.get(f"/models/{item['id']}", params=fresh)
    assert answer.headers["etag"] == f'"v{item["version"]}"'
    again = await ada.get(f"/models/{item['id']}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = await ada.get(f"/models/{item['id']}", headers={"If-None-Match": '"v1"'})
    assert other.status_code == 200


async def test_a_model_that_is_not_uploaded_cannot_be_downloaded(ada: Person) -> None:
    item = await register(ada, "models", {"a": b"a"})
    answer = await ada.get(f"/models/{item['id']}/download")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_uploaded")
