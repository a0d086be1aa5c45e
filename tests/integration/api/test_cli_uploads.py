"""An upload by the command line goes on where it stopped, whatever stopped it."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from kinora.client import ApiError, Client, Credentials
from kinora.local.servers import EmbeddedServers
from kinora.upload import FORGOTTEN, NotUploadable, declare, send_files
from schemas.api import RegisterBody
from schemas.objects import content_key
from tests.integration.api.running import MEBIBYTE, PASSWORD, Person, Visit
from tests.integration.api.stories import sha256

LARGE = os.urandom(11 * MEBIBYTE)
"""Three parts."""


@pytest.fixture
def client(visit: Visit, ada: Person) -> Iterator[Client]:
    credentials = Credentials(
        url=visit.service.url, username=ada.username, password=SecretStr(PASSWORD), organization_id=None
    )
    with Client(credentials) as client:
        yield client


class Watched:
    """A report that remembers, and does something at the first part that was sent, or the first wait."""

    def __init__(
        self, at_first_part: Callable[[], object] = lambda: None, at_wait: Callable[[], object] = lambda: None
    ) -> None:
        self.said: list[tuple[str, int]] = []
        self._at_first_part = at_first_part
        self._at_wait = at_wait

    def __call__(self, doing: str, done: int, total: int) -> None:
        if doing.startswith("waiting for the object store") and doing not in dict(self.said):
            self._at_wait()
        self.said.append((doing, done))
        if doing == "uploading" and self.parts == 1:
            self._at_first_part()

    @property
    def parts(self) -> int:
        return sum(doing == "uploading" for doing, _ in self.said)


def interrupt() -> None:
    raise KeyboardInterrupt


async def test_interrupted_it_sends_only_the_parts_that_are_missing(
    visit: Visit, ada: Person, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").write_bytes(LARGE)
    files = declare(tmp_path, ["a.mp4"], Watched())

    def run() -> tuple[Watched, Watched, str]:
        item = client.post("/datasets", RegisterBody(name="large", files=files))
        first, second = Watched(interrupt), Watched()
        with pytest.raises(KeyboardInterrupt):
            send_files(client, "datasets", item["id"], tmp_path, files, first)
        with pytest.raises(NotUploadable, match=r"a\.mp4"):
            send_files(client, "datasets", item["id"], tmp_path, (), Watched())
        done = send_files(client, "datasets", item["id"], tmp_path, files, second)
        with pytest.raises(ApiError) as refused:
            send_files(client, "datasets", item["id"], tmp_path, files, Watched())
        assert refused.value.code == "already_uploaded"
        return first, second, str(done["status"])

    first, second, status = await asyncio.to_thread(run)
    assert (first.parts, second.parts, status) == (1, 2, "uploaded")
    assert [done for doing, done in second.said if doing == "uploading"] == [10 * MEBIBYTE, 11 * MEBIBYTE]
    key = content_key(ada.organization_id, sha256(LARGE))
    assert await (await visit.store()).hash(key) == (sha256(LARGE), len(LARGE))


async def test_a_restart_of_the_store_is_waited_out_and_what_it_forgot_sent_anew(
    client: Client, servers: EmbeddedServers, tmp_path: Path
) -> None:
    content = bytes(reversed(LARGE))
    (tmp_path / "b.mp4").write_bytes(content)
    loop = asyncio.get_running_loop()

    def away() -> None:
        asyncio.run_coroutine_threadsafe(servers.child("s3").stop(), loop).result(30)

    def back() -> None:
        asyncio.run_coroutine_threadsafe(servers.revive("s3"), loop).result(60)

    watched = Watched(away, back)

    def run() -> str:
        files = declare(tmp_path, ["b.mp4"], Watched())
        item = client.post("/models", RegisterBody(name="large", files=files))
        return str(send_files(client, "models", item["id"], tmp_path, files, watched)["status"])

    assert await asyncio.to_thread(run) == "uploaded"
    assert watched.parts == 4
    said = [doing for doing, _ in watched.said]
    assert any(doing.startswith("waiting for the object store") for doing in said)
    assert FORGOTTEN in said
