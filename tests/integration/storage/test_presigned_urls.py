"""What a presigned URL is good for, asked of the real store: one method, key and length, a short time."""

from collections.abc import AsyncIterator

import httpx
import pytest

from command_api.objects import ObjectStore
from schemas.settings import S3Settings
from tests.integration.messaging.world import eventually

KEY = "org_a/checkpoints/job-1/attempt-1/checkpoint-2/weights"


@pytest.fixture
async def store(s3: S3Settings) -> AsyncIterator[ObjectStore]:
    async with ObjectStore(s3) as store:
        yield store


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


async def test_one_that_writes_does_nothing_else(store: ObjectStore, http: httpx.AsyncClient) -> None:
    url = await store.presign_put(KEY, size_bytes=4)
    assert (await http.put(url, content=b"four")).status_code == 200
    for method in ("GET", "HEAD", "DELETE", "POST"):
        assert (await http.request(method, url)).status_code == 403, method
    for content in (b"five!", b"", b"fou"):
        assert (await http.put(url, content=content)).status_code == 403, content
    assert await store.get_bytes(KEY) == b"four"


async def test_one_that_reads_does_nothing_else(store: ObjectStore, http: httpx.AsyncClient) -> None:
    await store.put_bytes(KEY, b"four")
    url = await store.presign_get(KEY)
    assert (await http.get(url)).content == b"four"
    assert (await http.put(url, content=b"more")).status_code == 403
    assert (await http.delete(url)).status_code == 403
    assert await store.get_bytes(KEY) == b"four"


async def test_nothing_of_it_can_be_changed(store: ObjectStore, http: httpx.AsyncClient) -> None:
    url = await store.presign_put(KEY, size_bytes=4)
    for old, new in (
        ("attempt-1", "attempt-2"),
        ("job-1", "job-2"),
        ("org_a", "org_b"),
        ("/weights", "/../checkpoint-3/weights"),
        ("/weights", "/%2e%2e/checkpoint-3/weights"),
        ("/weights", "/weights/more"),
        ("/weights", ""),
        ("X-Amz-Expires=900", "X-Amz-Expires=9000"),
    ):
        changed = url.replace(old, new, 1)
        assert changed != url
        assert (await http.put(changed, content=b"four")).status_code == 403, new
    assert [key async for key, _ in store.iterate("")] == []


async def test_not_after_its_time(s3: S3Settings, http: httpx.AsyncClient) -> None:
    async with ObjectStore(s3.model_copy(update={"presign_seconds": 1})) as store:
        await store.put_bytes(KEY, b"kept")
        reading, writing = await store.presign_get(KEY), await store.presign_put(KEY, size_bytes=4)

        async def ran_out() -> bool:
            return not (await http.get(reading)).is_success

        await eventually(ran_out, "the URL to run out")
        assert (await http.put(writing, content=b"late")).status_code in (400, 403)
        assert await store.get_bytes(KEY) == b"kept"


async def test_a_part_takes_its_own_place_only(store: ObjectStore, http: httpx.AsyncClient) -> None:
    upload_id = await store.create_multipart(KEY)
    url = await store.presign_part(KEY, upload_id, 2, size_bytes=4)
    assert (await http.put(url.replace("partNumber=2", "partNumber=1"), content=b"four")).status_code == 403
    assert (await http.put(url, content=b"other")).status_code == 403
    assert (await http.put(url, content=b"four")).status_code == 200
    await store.abort(KEY, upload_id)
